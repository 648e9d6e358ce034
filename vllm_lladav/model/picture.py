# SPDX-License-Identifier: Apache-2.0
"""Where in an image the visual tokens look, for those who draw it."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Grid(NamedTuple):
    """Visual tokens that look at the image together.

    Attributes:
        name: of the view.
        x: edges of its columns, from left to right, in pixels of the image.
        y: of its rows, from top to bottom.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class Picture(NamedTuple):
    """One image of a request.

    Attributes:
        size: (width, height) in pixels.
        mode: how it was tiled.
        num_tiles: that the tower saw.
        grids: of its visual tokens.
        cells: of each visual token: the number of its grid, row and column; None for
            one that looks at nothing.
    """

    size: tuple[int, int]
    mode: str
    num_tiles: int
    grids: tuple[Grid, ...]
    cells: tuple[tuple[int, int, int] | None, ...]

    def described(self) -> dict[str, Any]:
        """As JSON."""
        views = {
            grid.name: {"x": _rounded(grid.x), "y": _rounded(grid.y)}
            for grid in self.grids
        }
        return {"size": list(self.size), "mode": self.mode, "views": views}

    def patches(self, tokens: Iterable[int]) -> dict[str, list[tuple[int, int]]]:
        """Rows and columns of some visual tokens, by view."""
        found: dict[str, list[tuple[int, int]]] = {grid.name: [] for grid in self.grids}
        for token in tokens:
            cell = self.cells[token]
            if cell is not None:
                number, row, column = cell
                found[self.grids[number].name].append((row, column))
        return found


def _rounded(edges: Iterable[float]) -> list[float]:
    return [round(edge, 1) for edge in edges]
