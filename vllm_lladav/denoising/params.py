# SPDX-License-Identifier: Apache-2.0
"""The validated denoising parameters of one request."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from vllm_lladav.options.options import DenoisingOptions
from vllm_lladav.pruning.params import PruningParams

RESOLVED_KEY = "lladav"
"""Where in ``SamplingParams.extra_args`` the resolved parameters travel."""

CHANNEL_KEY = "lladav_channel"
"""Where the number of the channel does by which frames go to a client that watches."""


@dataclass(frozen=True, kw_only=True)
class DenoisingParams(DenoisingOptions):
    """What the official ``generate`` is called with, for one request: the options that
    hold for it (:class:`DenoisingOptions` says what they mean), and what else its
    answer follows from.

    Attributes:
        steps: denoising steps at most, over all blocks; a multiple of their number.
        max_answer_tokens: the answer is cut to this length.
        temperature: of the Gumbel noise; 0 is greedy.
        top_k: sample from so many most likely tokens only; 0 is all.
        top_p: and from the most likely ones that hold this share of the probability.
        seed: of the noise; of no meaning where nothing is random.
        stop_sequences: token sequences that end the answer where they stand in
            the canvas, in the order of the request. Stop strings that are looked for
            in the text are not among them: they are vLLM's detokenizer's.
        stops: the same as the client sent them: strings and token ids.
        end_token_id: ends the answer like a stop sequence; None to go on.
        suffix_token_ids: fixed tokens behind the canvas, returned after the answer.
        pruning: of visual tokens; None to keep all.
    """

    steps: int
    max_answer_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    stops: tuple[str | int, ...] = ()
    end_token_id: int | None = None
    suffix_token_ids: tuple[int, ...] = ()
    pruning: PruningParams | None = None

    def __post_init__(self) -> None:
        assert self.gen_length % self.block_length == 0, self
        assert self.steps % self.num_blocks == 0, self
        assert 0 < self.max_answer_tokens <= self.gen_length, self
        assert all(self.stop_sequences), self

    @property
    def num_blocks(self) -> int:
        """Blocks of the canvas."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.num_blocks

    @property
    def is_confident(self) -> bool:
        """Whether the number of transfers depends on the confidence, which means
        nothing where positions are ranked at random."""
        has_rule = self.confidence_threshold > 0 or self.confidence_factor > 0
        return has_rule and self.remasking != "random"

    @property
    def is_random(self) -> bool:
        """Whether the answer depends on the seed."""
        prunes_randomly = self.pruning is not None and self.pruning.is_random
        return self.temperature > 0 or self.remasking == "random" or prunes_randomly

    @property
    def follows_blocks(self) -> bool:
        """Whether what a step computes depends on the block and on the stop."""
        return self.cache in ("prefix", "dual")

    @cached_property
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
    def from_values(cls, values: Mapping[str, Any], seed: int | None) -> Self:
        """The inverse of :meth:`to_values`; sequences may come as lists."""
        pruning = values["pruning"]
        return cls(
            **{
                **values,
                "pruning": pruning and PruningParams.from_values(pruning),
                "stop_sequences": tuple(map(tuple, values["stop_sequences"])),
                "stops": tuple(values["stops"]),
                "suffix_token_ids": tuple(values["suffix_token_ids"]),
                "seed": seed,
            }
        )


def denoising_params(sampling_params: Any) -> DenoisingParams:
    """What the front end stored in a request's ``SamplingParams``."""
    assert sampling_params is not None and sampling_params.extra_args is not None
    values = sampling_params.extra_args[RESOLVED_KEY]
    params = DenoisingParams.from_values(values, sampling_params.seed)
    assert params.seed is not None or not params.is_random, params
    return params


def is_resolved(sampling_params: Any) -> bool:
    """Whether the parameters passed through the front end."""
    return RESOLVED_KEY in ((sampling_params and sampling_params.extra_args) or {})


def channel_of(sampling_params: Any) -> int | None:
    """The number of the channel by which the request's frames go to its client; None
    if it does not watch."""
    number: int | None = (sampling_params.extra_args or {}).get(CHANNEL_KEY)
    return number
