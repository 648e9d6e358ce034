# SPDX-License-Identifier: Apache-2.0
"""Every option of the plugin, declared once.

A declaration is a field of one of the classes below. From it come the flag of ``vllm
serve`` and of the tools (``flags.py``), the key of ``additional_config["lladav"]`` and
of ``vllm_xargs`` with their checks (``reading.py``), the axes of ``vllm-lladav eval``
and the documentation's tables. What is valid together is in ``rules.py``.

An option that is not set has its default; one whose default follows from something
else is None until then. ``RequestOptions.given`` names those that were set.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm_lladav.options.kinds import Integer, Number, OneOf, Text
from vllm_lladav.options.option import option, options_of
from vllm_lladav.pruning.params import POSITIONS, QUERIES, parse_stages
from vllm_lladav.pruning.policies import POLICIES

PLUGINS = ("none", "pruning")
REMASKING = ("low_confidence", "random")
CACHES = ("none", "prompt", "prefix", "dual")
STOP_SEARCHES = ("text", "tokens")

_FAST: dict[str, Any] = {
    "block_length": 32,
    "cache": "dual",
    "refresh_interval": 25,
    "confidence_threshold": 0.9,
    "confidence_factor": 0.0,
}
"""``docs/modes.md`` has what it was chosen by."""


_prune_option = partial(option, plugin="pruning")
_server_option = partial(option, in_request=False)


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """How a canvas is denoised. The defaults are those of the official
    ``generate_demo.py``: 128 positions, one block, one step for each."""

    denoising: str = option(
        "exact",
        OneOf(("exact", "fast")),
        f"preset of {', '.join(_FAST)}, each of which can still be set: exact computes "
        "what the official code computes; fast is dual cache and confidence decoding",
    )
    gen_length: int = option(
        128,
        Integer(),
        "canvas length, in tokens, of a request without max_tokens",
    )
    block_length: int = option(
        128,
        Integer(),
        "the canvas is finished block after block of this length, which divides "
        "gen_length; canvases that follow from max_tokens are rounded up to whole "
        "blocks and answers cut",
        default_text="128, at most the canvas",
        label="blocks of {}",
    )
    steps: int | None = option(
        None,
        Integer(),
        "denoising steps over all blocks, a multiple of their number; those that a "
        "block has more than positions do nothing",
        default_text="one per tokens_per_step positions",
        is_flag=False,
        label="{} steps",
    )
    remasking: str = option(
        "low_confidence",
        OneOf(REMASKING),
        "which positions keep their prediction: the most confident or random ones",
        label="{} remasking",
    )
    generation_suffix: str = option(
        "",
        Text(4096),
        "fixed text behind the canvas, returned after the answer",
        default_text="none",
        is_flag=False,
    )
    stop_search: str = option(
        "text",
        OneOf(STOP_SEARCHES),
        "where stop strings are looked for: in the text, as far as it is final; or, as "
        "the official code does, tokenised, in the tokens of the whole canvas",
    )
    cache: str = option(
        "none",
        OneOf(CACHES),
        "what denoising steps read from the KV blocks instead of computing it: nothing "
        "(exact), the prompt, the prefix before the current block, or dual: everything "
        "outside of it",
    )
    refresh_interval: int = option(
        25,
        Integer(),
        "with a cache, every so many steps compute everything",
        label="refreshed every {}",
    )
    confidence_threshold: float = option(
        0.0,
        Number("from 0 (off) to 1", lambda value: 0 <= value <= 1),
        "a step unmasks every position of this confidence, at least one, instead of a "
        "fixed number; steps is then a bound; 0 is off",
        label="c>={:g}",
    )
    confidence_factor: float = option(
        0.0,
        Number("at least 0 (off) and at most 1000000", lambda value: 0 <= value <= 1e6),
        "as confidence_threshold, by the factor rule of Fast-dLLM (arXiv 2505.22618); "
        "0 is off",
        label="factor {:g}",
    )
    cfg_scale: float = option(
        0.0,
        Number("at least 0 (off) and at most 100", lambda value: 0 <= value <= 100),
        "strength of classifier-free guidance; a guided request costs twice as much "
        "and holds twice the KV blocks; 0 is off",
        label="cfg {:g}",
    )

    @property
    def num_sequences(self) -> int:
        """What runs in every step: with guidance, the unconditional twin too, whose
        prompt is the mask embedding throughout. Logits ``l`` then become
        ``u + (cfg_scale + 1) * (l - u)``, where ``u`` are the twin's."""
        return 2 if self.cfg_scale else 1


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Which visual tokens are dropped, and when. They need ``--plugin pruning``."""

    prune_rate: float = _prune_option(
        0.5,
        Number("at least 0 (off) and below 1", lambda value: 0 <= value < 1),
        "share of the visual tokens (newline embeddings included, all images together) "
        "that is dropped in the first denoising step, rounded down; every image keeps "
        "at least one; 0 is off and exact",
    )
    prune_layer: int | None = _prune_option(
        None,
        Integer(),
        "decoder layer, counted from 1, after which visual tokens are dropped",
        default_text="half the depth, rounded up",
        label="@{}",
    )
    prune_stages: str | None = _prune_option(
        None,
        Text(1024, "step:layer:rate,...", parse_stages),
        "several cuts instead of prune_rate and prune_layer, as "
        "step:layer:rate,step:layer:rate; each rate is of the visual tokens that are "
        "still there",
        default_text="none",
    )
    prune_policy: str = _prune_option(
        "fastv",
        OneOf(POLICIES),
        "how visual tokens are ranked",
    )
    prune_queries: str | None = _prune_option(
        None,
        OneOf(QUERIES),
        "rows whose attention counts: all positions, answer (masked positions of the "
        "canvas), or the last position",
        default_text="answer for the policy aggregated, else all",
    )
    prune_positions: str = _prune_option(
        "original",
        OneOf(POSITIONS),
        "rotary positions of the kept tokens in later steps: their own, or renumbered "
        "without gaps",
    )
    prune_min_visual_tokens: int = _prune_option(
        0,
        Integer(least=0),
        "a request with fewer visual tokens is left alone",
        label="from {} tokens",
    )
    prune_tau: float = _prune_option(
        0.95,
        Number("above 0 and at most 1", lambda value: 0 < value <= 1),
        "share of the attention mass that the policy adaptive keeps, dropping at least "
        "prune_rate",
        label="tau {:g}",
    )


@dataclass(frozen=True, kw_only=True)
class RequestOptions(PruningOptions, DenoisingOptions):
    """Everything that a request may set.

    Attributes:
        given: names of the options that were set, in the request or for the server,
            whichever this is.
    """

    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # mypy takes the class for one of its instances.
        options = options_of(type(self))  # type: ignore[arg-type]
        for name, declared in options.items():
            value = getattr(self, name)
            if value is not None or declared.default is not None:
                object.__setattr__(self, name, declared.kind.check(name, value))


@dataclass(frozen=True, kw_only=True)
class ServerOptions(RequestOptions):
    """Defaults and limits of a server."""

    plugin: str = _server_option(
        "none", OneOf(PLUGINS), "what the engine does beyond exact denoising"
    )
    tokens_per_step: int = _server_option(
        1, Integer(), "canvas positions per denoising step of a request without steps"
    )
    max_gen_length: int = _server_option(
        1024, Integer(), "longest canvas; requests for longer ones are refused"
    )
    full_step_tokens: int = _server_option(
        2048,
        Integer(least=0),
        "most tokens of full steps (first, refreshing and exact ones) in an iteration; "
        "one such step always fits; 0 is no limit. About as many as fill the machine: "
        "more of them at once only delay each other, and the cached steps beside them",
    )
    deadline_seconds: float = _server_option(
        0.0,
        Number(
            "at least 0 (none) and at most 1000000", lambda value: 0 <= value <= 1e6
        ),
        "a request that is not answered after so long is given up with a 504; "
        "deadline_seconds in vllm_xargs overrides it; 0 is none",
    )
    step_overdue_seconds: int = _server_option(
        60,
        Integer(),
        "/health answers 503 while the engine has not finished a step for so long",
    )
    max_body_mib: int = _server_option(
        64, Integer(most=1024), "largest body of a request, in MiB, images included"
    )
    max_image_pixels: int = _server_option(
        2**26,
        Integer(),
        "most pixels (width times height, as its header says) of an image that a "
        "client sends or names by URL; decoding takes up to 8 bytes for each, one "
        "image at a time; VLLM_MAX_IMAGE_PIXELS counts where it is lower",
    )
    max_request_image_pixels: int = _server_option(
        2**28, Integer(), "most pixels of all images of a request"
    )
    image_uuids: str = _server_option(
        "refuse",
        OneOf(("refuse", "allow")),
        "uuid of a content part, or features of /inference/v1/generate, by which "
        "clients name images: names are shared by all of them, so allow is for "
        "clients that trust each other",
    )
    live_canvas: str = _server_option(
        "off",
        OneOf(("off", "on")),
        "lets streamed chat completions show their canvas step by step (live_canvas in "
        "vllm_xargs), and serves the page /lladav, which draws it",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gen_length > self.max_gen_length:
            raise ValueError(
                f"gen_length ({self.gen_length}) must not exceed "
                f"max_gen_length ({self.max_gen_length})"
            )


SERVER_OPTIONS = {
    name: declared
    # Those that requests have too come last.
    for name, declared in sorted(
        options_of(ServerOptions).items(), key=lambda item: item[1].in_request
    )
    if declared.is_flag
}
REQUEST_OPTIONS = options_of(RequestOptions)
PRESETS: dict[str, dict[str, Any]] = {
    "exact": {name: REQUEST_OPTIONS[name].default for name in _FAST},
    "fast": _FAST,
}
"""Options under one name, that of ``denoising``."""
