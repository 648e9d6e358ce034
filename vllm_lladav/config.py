# SPDX-License-Identifier: Apache-2.0
"""Server-wide options of the plugin, parsed and validated once.

They come from the command line (``cli.py``) or from
``additional_config["lladav"]``, travel to every process in vLLM's own config,
and are read there through :meth:`ServerConfig.of`.
"""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from vllm_lladav.denoising.params import REMASKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADDITIONAL_CONFIG_KEY = "lladav"
PLUGINS = ("none", "pruning")


@dataclass(frozen=True)
class ServerConfig:
    """Defaults and limits of the server.

    Attributes:
        plugin: ``none`` or ``pruning``.
        gen_length: canvas length of a request that asks for no length.
        block_length: largest block length of a request that sets none.
        tokens_per_step: canvas positions per denoising step of a request that
            sets no ``steps``.
        remasking: of a request that sets none.
        max_gen_length: longest canvas that a request may ask for.

    The defaults are those of the official ``generate_demo.py``: 128 positions,
    one block, one step for each.
    """

    plugin: str = "none"
    gen_length: int = 128
    block_length: int = 128
    tokens_per_step: int = 1
    remasking: str = "low_confidence"
    max_gen_length: int = 1024

    def __post_init__(self) -> None:
        _require_one_of("plugin", self.plugin, PLUGINS)
        _require_one_of("remasking", self.remasking, REMASKING)
        for name in ("gen_length", "block_length", "tokens_per_step", "max_gen_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1: {value!r}")
        if self.gen_length > self.max_gen_length:
            raise ValueError(
                f"gen_length ({self.gen_length}) must not exceed "
                f"max_gen_length ({self.max_gen_length})"
            )

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Check names and values of ``additional_config["lladav"]``."""
        if not isinstance(values, dict):
            raise ValueError(
                f'additional_config["{ADDITIONAL_CONFIG_KEY}"] must be an object, '
                f"got {values!r}"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f'unknown option in additional_config["{ADDITIONAL_CONFIG_KEY}"]: '
                f"{', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> Self:
        additional = vllm_config.additional_config
        if not isinstance(additional, dict):
            return cls()
        return cls.from_values(additional.get(ADDITIONAL_CONFIG_KEY, {}))

    def to_values(self) -> dict[str, Any]:
        return asdict(self)


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: {value!r}")
