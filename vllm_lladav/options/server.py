# SPDX-License-Identifier: Apache-2.0
"""Server-wide options of the plugin, parsed and validated once.

They come from the command line (``flags.py``) or from
``additional_config["lladav"]``, travel to every process in vLLM's own config,
and are read there through :meth:`ServerConfig.of`.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from vllm_lladav.denoising.params import CACHES, REMASKING
from vllm_lladav.pruning.params import POLICIES, POSITIONS, QUERIES, parse_stages

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADDITIONAL_CONFIG_KEY = "lladav"
PLUGINS = ("none", "pruning")
DEFAULT_PRUNE_RATE = 0.5

DENOISING_PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"cache": "none", "confidence_threshold": 0.0, "confidence_factor": 0.0},
    "fast": {
        "block_length": 32,
        "cache": "dual",
        "refresh_interval": 25,
        "confidence_threshold": 0.9,
        "confidence_factor": 0.0,
    },
}
"""Options under one name (``docs/modes.md`` has what ``fast`` was chosen by)."""


@dataclass(frozen=True)
class ServerConfig:
    """Defaults and limits of the server.

    Attributes:
        plugin: ``none`` or ``pruning``.
        denoising: which of the presets :meth:`from_values` takes options from that
            are not set themselves.
        gen_length: canvas length of a request that asks for no length.
        block_length: largest block length of a request that sets none.
        tokens_per_step: canvas positions per denoising step of a request that
            sets no ``steps``.
        remasking: of a request that sets none.
        max_gen_length: longest canvas that a request may ask for.
        confidence_threshold: of a request that sets none; 0 is off.
        confidence_factor: the same.
        cache: of a request that sets none: what steps read from the KV blocks
            instead of computing it: ``none``, the ``prompt``, the ``prefix`` before
            the current block, or ``dual``, everything outside of it.
        refresh_interval: with a cache, every so many steps compute everything.
        cfg_scale: of a request that sets none; 0 is off.
        full_step_tokens: most tokens of full steps in an iteration that has cached
            steps too; 0 is no limit.
        prune_rate: share of the visual tokens that is dropped; 0 is off.
        prune_layer: decoder layer, counted from 1, after which they are dropped in
            the first step; None for half the depth, rounded up.
        prune_stages: several cuts, ``step:layer:rate,...``, instead of these two.
        prune_policy: how visual tokens are ranked.
        prune_queries: rows whose attention counts; None for ``answer`` with the
            policy ``aggregated`` and ``all`` with the others.
        prune_positions: of kept tokens: ``original`` or ``compact``.
        prune_min_visual_tokens: a request with fewer is left alone.
        prune_tau: share of the attention mass that the policy ``adaptive`` keeps.

    The defaults of denoising are those of the official ``generate_demo.py``: 128
    positions, one block, one step for each. Pruning needs the plugin ``pruning``.
    """

    plugin: str = "none"
    denoising: str = "exact"
    gen_length: int = 128
    block_length: int = 128
    tokens_per_step: int = 1
    remasking: str = "low_confidence"
    max_gen_length: int = 1024
    confidence_threshold: float = 0.0
    confidence_factor: float = 0.0
    cache: str = "none"
    refresh_interval: int = 25
    cfg_scale: float = 0.0
    full_step_tokens: int = 2048
    prune_rate: float = DEFAULT_PRUNE_RATE
    prune_layer: int | None = None
    prune_stages: str | None = None
    prune_policy: str = "fastv"
    prune_queries: str | None = None
    prune_positions: str = "original"
    prune_min_visual_tokens: int = 0
    prune_tau: float = 0.95

    def __post_init__(self) -> None:
        _require_one_of("plugin", self.plugin, PLUGINS)
        _require_one_of("denoising", self.denoising, tuple(DENOISING_PRESETS))
        _require_one_of("remasking", self.remasking, REMASKING)
        _require_one_of("cache", self.cache, CACHES)
        for name in (
            *("gen_length", "block_length", "tokens_per_step", "max_gen_length"),
            "refresh_interval",
        ):
            _require_integer(name, getattr(self, name), least=1)
        _require_integer("full_step_tokens", self.full_step_tokens, least=0)
        if self.gen_length > self.max_gen_length:
            raise ValueError(
                f"gen_length ({self.gen_length}) must not exceed "
                f"max_gen_length ({self.max_gen_length})"
            )
        _require_number("confidence_threshold", self.confidence_threshold)
        if not 0 <= self.confidence_threshold <= 1:
            raise ValueError(
                "confidence_threshold must be from 0 (off) to 1: "
                f"{self.confidence_threshold!r}"
            )
        for name in ("confidence_factor", "cfg_scale"):
            value = getattr(self, name)
            _require_number(name, value)
            if value < 0:
                raise ValueError(f"{name} must be at least 0 (off): {value!r}")
        self._check_pruning()

    def _check_pruning(self) -> None:
        """What can be checked without the model's depth."""
        if self.plugin != "pruning":
            for field in fields(self):
                value = getattr(self, field.name)
                if field.name.startswith("prune_") and value != field.default:
                    raise ValueError(f"{field.name} needs --plugin pruning: {value!r}")
        _require_number("prune_rate", self.prune_rate)
        if not 0 <= self.prune_rate < 1:
            raise ValueError(
                f"prune_rate must be at least 0 (off) and below 1: {self.prune_rate!r}"
            )
        _require_number("prune_tau", self.prune_tau)
        if not 0 < self.prune_tau <= 1:
            raise ValueError(
                f"prune_tau must be above 0 and at most 1: {self.prune_tau!r}"
            )
        if self.prune_layer is not None:
            _require_integer("prune_layer", self.prune_layer, least=1)
        _require_integer(
            "prune_min_visual_tokens", self.prune_min_visual_tokens, least=0
        )
        _require_one_of("prune_policy", self.prune_policy, POLICIES)
        _require_one_of("prune_queries", self.prune_queries, (*QUERIES, None))
        _require_one_of("prune_positions", self.prune_positions, POSITIONS)
        if self.prune_stages is not None:
            if not isinstance(self.prune_stages, str):
                raise ValueError(f"prune_stages must be text: {self.prune_stages!r}")
            if (self.prune_rate, self.prune_layer) != (DEFAULT_PRUNE_RATE, None):
                raise ValueError(
                    "prune_stages must be set without prune_rate and prune_layer"
                )
            try:
                parse_stages(self.prune_stages)
            except ValueError as error:
                raise ValueError(
                    f"prune_stages must be step:layer:rate,...: {error}"
                ) from None

    def check_depth(self, num_layers: int) -> None:
        """Check the layers against the model's.

        Raises:
            ValueError: if tokens are to be dropped after a layer that is not there.
        """
        layers = [self.prune_layer or 1]
        if self.prune_stages is not None:
            layers += [stage.layer for stage in parse_stages(self.prune_stages)]
        if max(layers) > num_layers:
            raise ValueError(
                f"pruning after layer {max(layers)} is not possible: the model has "
                f"{num_layers} layers"
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
        preset = values.get("denoising", cls.denoising)
        _require_one_of("denoising", preset, tuple(DENOISING_PRESETS))
        return cls(**{**DENOISING_PRESETS[preset], **values})

    def with_preset(self, name: str) -> Self:
        """The same with another preset, one of ``DENOISING_PRESETS``."""
        return replace(self, denoising=name, **DENOISING_PRESETS[name])

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> Self:
        additional = vllm_config.additional_config
        if not isinstance(additional, dict):
            return cls()
        return cls.from_values(additional.get(ADDITIONAL_CONFIG_KEY, {}))

    def to_values(self) -> dict[str, Any]:
        return asdict(self)


def _require_one_of(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        names = ", ".join(name for name in allowed if name is not None)
        raise ValueError(f"{name} must be one of {names}: {value!r}")


def _require_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}: {value!r}")


def _require_number(name: str, value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
    ):
        raise ValueError(f"{name} must be a finite number: {value!r}")
