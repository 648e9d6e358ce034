# SPDX-License-Identifier: Apache-2.0
"""The validated denoising parameters of one request."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from vllm_lladav.pruning.params import PruningParams

RESOLVED_KEY = "lladav"
"""Where in ``SamplingParams.extra_args`` the resolved parameters travel."""

STOPS_KEY = "lladav_stops"
"""Where the client's ``stop`` and ``stop_token_ids`` travel, for ``stop_reason``."""

REMASKING = ("low_confidence", "random")
CACHES = ("none", "prompt", "prefix", "dual")


@dataclass(frozen=True)
class DenoisingParams:
    """What the official ``generate`` is called with, for one request.

    Attributes:
        gen_length: canvas positions; a multiple of ``block_length``.
        block_length: positions that are finished before the next ones begin.
        steps: denoising steps at most, over all blocks; a multiple of their number.
        temperature: of the Gumbel noise; 0 is greedy.
        top_k: sample from so many most likely tokens only; 0 is all.
        top_p: and from the most likely ones that hold this share of the probability.
        remasking: rank positions by ``low_confidence`` or at ``random``.
        seed: of the noise; of no meaning where nothing is random.
        max_answer_tokens: the answer is cut to this length.
        stop_sequences: token sequences that end the answer where they stand in
            the canvas, in the order of the request.
        end_token_id: ends the answer like a stop sequence; None to go on.
        suffix_token_ids: fixed tokens behind the canvas, returned after the answer.
        confidence_threshold: a step transfers every position that reaches it, at
            least one; ``steps`` is then a bound. None to transfer fixed numbers.
        confidence_factor: the same with the factor rule of arXiv 2505.22618.
        cache: what steps read from the KV blocks instead of computing it: ``none``,
            the ``prompt``, the ``prefix`` before the current block, or ``dual``:
            everything outside of the current block.
        refresh_interval: with a cache, every so many steps compute everything;
            ``prefix`` and ``dual`` count from the start of each block.
        pruning: of visual tokens; None to keep all.
        cfg_scale: of classifier-free guidance: logits ``l`` become
            ``u + (cfg_scale + 1) * (l - u)``, where ``u`` are those of the same
            canvas behind a prompt of mask embeddings; 0 is off.
    """

    gen_length: int
    block_length: int
    steps: int
    temperature: float
    remasking: str
    seed: int | None
    max_answer_tokens: int
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    end_token_id: int | None = None
    suffix_token_ids: tuple[int, ...] = ()
    confidence_threshold: float | None = None
    confidence_factor: float | None = None
    cache: str = "none"
    refresh_interval: int = 1
    pruning: PruningParams | None = None
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0

    def __post_init__(self) -> None:
        assert self.gen_length % self.block_length == 0, self
        assert self.steps % self.num_blocks == 0, self
        assert 0 < self.max_answer_tokens <= self.gen_length, self
        assert self.remasking in REMASKING, self
        assert self.cache in CACHES, self
        assert self.refresh_interval >= 1, self
        assert self.cfg_scale >= 0, self
        assert all(self.stop_sequences), self
        assert self.seed is not None or not self.is_random, self

    @property
    def num_blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.num_blocks

    @property
    def is_confident(self) -> bool:
        """Whether the number of transfers depends on the confidence."""
        return self.confidence_threshold is not None or (
            self.confidence_factor is not None
        )

    @property
    def is_random(self) -> bool:
        prunes_randomly = self.pruning is not None and self.pruning.is_random
        return self.temperature > 0 or self.remasking == "random" or prunes_randomly

    @property
    def num_sequences(self) -> int:
        """What runs in every step: with guidance, the unconditional twin too."""
        return 2 if self.cfg_scale else 1

    @property
    def num_tail_tokens(self) -> int:
        """Positions behind the prompt: canvas and suffix."""
        return self.gen_length + len(self.suffix_token_ids)

    def to_values(self) -> dict[str, Any]:
        """As plain values, to be sent between processes. The seed stays out: with
        ``n`` > 1 vLLM gives every sample its own ``SamplingParams.seed``."""
        values = asdict(self)
        del values["seed"]
        return values

    @classmethod
    def from_values(cls, values: dict[str, Any], seed: int | None) -> Self:
        """The inverse of :meth:`to_values`; sequences may come as lists."""
        pruning = values["pruning"]
        return cls(
            **{
                **values,
                "pruning": pruning and PruningParams.from_values(pruning),
                "stop_sequences": tuple(map(tuple, values["stop_sequences"])),
                "suffix_token_ids": tuple(values["suffix_token_ids"]),
                "seed": seed,
            }
        )


class Sampling(Protocol):
    """vLLM's ``SamplingParams``, as far as they matter here."""

    seed: int | None
    extra_args: dict[str, Any] | None


def denoising_params(sampling_params: Sampling | None) -> DenoisingParams:
    """What the front end stored in a request's sampling parameters."""
    assert sampling_params is not None and sampling_params.extra_args is not None
    seed = sampling_params.seed
    values = sampling_params.extra_args[RESOLVED_KEY]
    return DenoisingParams.from_values(values, seed)


def is_resolved(sampling_params: Sampling | None) -> bool:
    """Whether the parameters passed through the front end."""
    return RESOLVED_KEY in ((sampling_params and sampling_params.extra_args) or {})
