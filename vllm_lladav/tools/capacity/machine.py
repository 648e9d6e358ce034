# SPDX-License-Identifier: Apache-2.0
"""The figures of a machine that capacity is computed from, and those of some GPUs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Machine:
    """One accelerator, or a computer without any: what one rank runs on.

    Attributes:
        memory: bytes.
        peak: floating-point operations per second, dense, in the model's dtype.
        bandwidth: bytes per second between memory and processor.
        share: fraction of ``peak`` that large matrix products reach, 0 to 1.
        bandwidth_share: fraction of ``bandwidth`` (and of ``link``) that is reached,
            0 to 1.
        overhead: seconds that a step takes beside the model's arithmetic.
        request_overhead: seconds that every request adds to a step's overhead.
        link: bytes per second to the other ranks, in one direction; None for a
            machine with one rank.

    Raises:
        ValueError: naming the figure that is out of range.
    """

    memory: float
    peak: float
    bandwidth: float
    share: float = 0.6
    bandwidth_share: float = 0.8
    overhead: float = 5e-3
    request_overhead: float = 0.3e-3
    link: float | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "peak", "bandwidth"):
            _require(_is_number(self, name, above=0), self, name, "above 0")
        for name in ("share", "bandwidth_share"):
            in_range = _is_number(self, name, above=0) and getattr(self, name) <= 1
            _require(in_range, self, name, "above 0 and at most 1")
        for name in ("overhead", "request_overhead"):
            _require(_is_number(self, name, least=0), self, name, "at least 0")
        if self.link is not None:
            _require(_is_number(self, "link", above=0), self, "link", "above 0")

    @property
    def reached_flops(self) -> float:
        """Floating-point operations per second of large matrix products."""
        return self.peak * self.share

    @property
    def reached_bandwidth(self) -> float:
        """Bytes per second that reading or writing memory reaches."""
        return self.bandwidth * self.bandwidth_share


def _is_number(
    machine: Machine, name: str, above: float = -math.inf, least: float = -math.inf
) -> bool:
    value = getattr(machine, name)
    return math.isfinite(value) and value > above and value >= least


def _require(is_right: bool, machine: Machine, name: str, allowed: str) -> None:
    if not is_right:
        value = getattr(machine, name) / UNITS[name]
        raise ValueError(f"machine: {name} must be {allowed}: {value:g}")


UNITS: Mapping[str, float] = MappingProxyType(
    {
        "memory": GIGA,
        "peak": TERA,
        "bandwidth": GIGA,
        "share": 1.0,
        "bandwidth_share": 1.0,
        "overhead": 1e-3,
        "request_overhead": 1e-3,
        "link": GIGA,
    }
)
"""Units that users give a :class:`Machine`'s figures in, as factors to its own: GB
(10^9 bytes), TFLOP/s, GB/s, ms."""

REQUIRED = ("memory", "peak", "bandwidth")
"""Figures that have no default."""

GPUS: Mapping[str, Machine] = MappingProxyType(
    {
        "h100": Machine(80e9, 989.4e12, 3350e9, link=450e9),
        "h200": Machine(141e9, 989.4e12, 4800e9, link=450e9),
        "a100-80g": Machine(80e9, 312e12, 2039e9, link=300e9),
        "l40s": Machine(48e9, 362.05e12, 864e9, link=32e9),
        "4090": Machine(24e9, 165.2e12, 1008e9, link=32e9),
    }
)
"""NVIDIA's data sheets (SXM where there is one): dense bfloat16 with float32
accumulation; links are NVLink, or PCIe 4.0 x16 for the last two, in one direction."""

GPU_DTYPE_BYTES = 2
"""Bytes of bfloat16, the dtype for which :data:`GPUS` has the peaks."""


def parse_machine(text: str, base: Machine | None = None) -> Machine:
    """Read ``name=value,...`` in the units of :data:`UNITS`.

    Args:
        base: machine whose figures are taken where ``text`` gives none.

    Raises:
        ValueError: naming the figure that is wrong or missing.
    """
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, is_pair, value = part.partition("=")
        name = name.strip()
        if not is_pair or name not in UNITS:
            raise ValueError(
                f"machine: {part.strip()!r} is not name=value; names are "
                f"{', '.join(UNITS)}"
            )
        try:
            given[name] = float(value) * UNITS[name]
        except ValueError:
            raise ValueError(f"machine: {name} must be a number: {value!r}") from None
    if base is None:
        missing = [name for name in REQUIRED if name not in given]
        if missing:
            raise ValueError(f"machine: {', '.join(missing)} must be given")
        return Machine(**given)
    known = {name: getattr(base, name) for name in UNITS}
    return Machine(**{**known, **given})


def describe(machine: Machine) -> str:
    """``name=value,...`` for ``--machine``, which :func:`parse_machine` reads back."""
    values = {name: getattr(machine, name) for name in UNITS}
    return ",".join(
        f"{name}={value / UNITS[name]:.6g}"
        for name, value in values.items()
        if value is not None
    )
