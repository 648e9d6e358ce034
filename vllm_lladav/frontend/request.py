# SPDX-License-Identifier: Apache-2.0
"""From what a client sent to the :class:`DenoisingParams` of its request.

The OpenAI fields keep their meaning (``max_tokens``, ``temperature``, ``seed``,
``stop``, ``ignore_eos``); what they cannot say comes in ``vllm_xargs`` (offline:
``SamplingParams.extra_args``). Everything is resolved once, in the front end;
the engine core and the workers read the result with
:func:`~vllm_lladav.denoising.params.denoising_params`.
"""

import math
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_lladav.denoising.params import RESOLVED_KEY, DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.resolve import resolve as resolve_options
from vllm_lladav.options.kinds import OptionError
from vllm_lladav.options.options import ServerOptions
from vllm_lladav.options.reading import read_request

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
"""What an int64 holds. Sample i of a request gets ``seed + i``."""

MAX_STOPS = 32
"""Stop strings and stop token ids of a request, together."""

MAX_STOP_LENGTH = 1024
"""Characters of a stop string: it is looked for while others wait."""

_UNSUPPORTED = {
    # field: (value that means "not used", what needs it)
    "presence_penalty": (0.0, "penalties need an order of generation"),
    "frequency_penalty": (0.0, "penalties need an order of generation"),
    "repetition_penalty": (1.0, "penalties need an order of generation"),
    "repetition_detection": (None, "it needs an order of generation"),
    "logit_bias": (None, ""),
    "allowed_token_ids": (None, ""),
    "bad_words": (None, ""),
    "prompt_logprobs": (None, "a prompt is given, not predicted"),
    "prompt_logprob_token_ids": (None, ""),
    "logprob_token_ids": (None, ""),
    "structured_outputs": (None, "response_format, guided decoding and forced tools"),
    "thinking_token_budget": (None, ""),
    "trace_decode_token_ids": (None, ""),
    "min_tokens": (0, "the canvas has a fixed length"),
    "min_p": (0.0, ""),
}


class DefaultMaxTokens(int):
    """A ``max_tokens`` that the server filled in because the client sent none."""


@dataclass(frozen=True)
class Limits:
    """What a request must fit into, in tokens.

    Attributes:
        max_prompt_len: ``tokenizer_model_max_length`` of the checkpoint.
        max_model_len: prompt, canvas and suffix together stay below it, those of the
            unconditional twin too.
        kv_block_size: KV slots of a block.
        num_kv_slots: of the whole KV cache; None while it is not known.
        max_num_seqs: sequences in a step; a guided request has two.
        num_layers: decoder layers of the checkpoint.
    """

    max_prompt_len: int
    max_model_len: int
    kv_block_size: int
    max_num_seqs: int
    num_kv_slots: int | None
    num_layers: int

    def longest_sequence(self, num_sequences: int) -> int:
        """Tokens that each of a request's sequences, of which there are 1 or 2, can
        have."""
        most = self.max_model_len - 1
        if self.num_kv_slots is not None:
            most = min(most, self.num_kv_slots)
        if num_sequences == 1:
            return most
        # The first one takes whole KV blocks.
        num_whole = most // 2 // self.kv_block_size * self.kv_block_size
        return max(num_whole, most - num_whole - self.kv_block_size)


def check_supported(params: SamplingParams) -> None:
    """Refuse what a diffusion model cannot do.

    Raises:
        VLLMValidationError: naming the parameter (HTTP 400).
    """
    for name, (unused, reason) in _UNSUPPORTED.items():
        value = getattr(params, name)
        if value is None:
            continue
        # An array, which prompt_logprob_token_ids may be, has no truth value.
        if not isinstance(value, np.ndarray) and value in (unused, [], {}):
            continue
        raise VLLMValidationError(
            f"{name} is not supported by a masked-diffusion model"
            + (f" ({reason})" if reason else ""),
            parameter=name,
            value=str(value),
        )
    _check_stops(params)
    if params.logprobs is not None and params.logprobs < 0:
        raise _invalid("logprobs", params.logprobs, "at least 0")
    last_seed = MAX_SEED - (params.n - 1)
    if params.seed is not None and not MIN_SEED <= params.seed <= last_seed:
        raise _invalid("seed", params.seed, f"between {MIN_SEED} and {last_seed}")
    if not math.isfinite(params.temperature):
        raise VLLMValidationError(
            "temperature must be a finite number of at least 0",
            parameter="temperature",
            value=str(params.temperature),
        )


def _check_stops(params: SamplingParams) -> None:
    stops = _stop_strings(params)
    number = len(stops) + len(params.stop_token_ids or [])
    if number > MAX_STOPS:
        allowed = f"at most {MAX_STOPS}, stop_token_ids included"
        raise _invalid("stop", f"{number} of them", allowed)
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_LENGTH:
        allowed = f"strings of at most {MAX_STOP_LENGTH} characters"
        raise _invalid("stop", f"{longest} characters", allowed)


def _stop_strings(params: SamplingParams) -> list[str]:
    return [params.stop] if isinstance(params.stop, str) else list(params.stop or [])


def resolve(
    params: SamplingParams,
    prompt_len: int,
    server: ServerOptions,
    limits: Limits,
    tokenizer: Any,
    end_token_id: int,
    has_prompt_masks: bool = False,
) -> None:
    """Resolve a request in place.

    ``params`` is the request's own copy. Afterwards its ``extra_args`` hold the
    resolved parameters, its seed is set if anything is random, and of vLLM's own
    stopping only the search in the text is left: where an answer ends otherwise is
    decided in the canvas.

    Raises:
        VLLMValidationError: naming the parameter, its value and what is allowed.
    """
    values = params.extra_args or {}
    sampling: dict[str, Any] = {
        "temperature": params.temperature,
        "top_k": max(params.top_k, 0),
        "top_p": params.top_p,
    }
    if has_prompt_masks:
        # They are predicted too, in every step.
        sampling["cache"] = "none"
    max_tokens = params.max_tokens
    if isinstance(max_tokens, DefaultMaxTokens):
        max_tokens = None
    try:
        options = read_request(server, values)
        suffix = _encode(tokenizer, options.generation_suffix)
        longest = limits.longest_sequence(options.num_sequences)
        room = longest - prompt_len - len(suffix)
        resolved = resolve_options(
            server,
            values,
            limits.num_layers,
            max_tokens,
            # Without any, the request is refused for what it would need.
            room if room > 0 else None,
            suffix_token_ids=suffix,
            **sampling,
            **_ends(params, options.stop_search, tokenizer, end_token_id),
        )
    except OptionError as error:
        raise VLLMValidationError(str(error), parameter=error.name) from None
    if resolved.is_random and params.seed is None:
        # Drawn here, once: every tensor-parallel rank must draw the same noise.
        params.seed = secrets.randbits(32)
    _check_fits(resolved, prompt_len, limits)
    params.extra_args = {RESOLVED_KEY: resolved.to_values()}
    params.max_tokens = resolved.max_answer_tokens + len(suffix)
    if resolved.stop_search == "tokens":
        params.stop = []
    params.stop_token_ids = []


def _ends(
    params: SamplingParams, stop_search: str, tokenizer: Any, end_token_id: int
) -> dict[str, Any]:
    """What ends the answer in the canvas, as fields of :class:`DenoisingParams`."""
    strings = _stop_strings(params) if stop_search == "tokens" else []
    sequences = [_encode(tokenizer, stop) for stop in strings]
    if not all(sequences):
        raise _invalid("stop", strings, "strings that encode to at least one token")
    token_ids = params.stop_token_ids or []
    sequences += [(token_id,) for token_id in token_ids]
    if params.include_stop_str_in_output and sequences:
        raise _invalid(
            "include_stop_str_in_output",
            True,
            "false with stop_token_ids and with stop_search tokens, which cut the "
            "canvas before the stop",
        )
    ends = not params.ignore_eos and (end_token_id,) not in sequences
    return {
        "stop_sequences": tuple(sequences),
        "stops": (*strings, *token_ids),
        "end_token_id": end_token_id if ends else None,
    }


def _check_fits(params: DenoisingParams, prompt_len: int, limits: Limits) -> None:
    if prompt_len > limits.max_prompt_len:
        raise _invalid(
            "prompt",
            f"{prompt_len} tokens",
            f"at most {limits.max_prompt_len} tokens, images included "
            "(tokenizer_model_max_length of the checkpoint)",
        )
    if params.num_sequences > limits.max_num_seqs:
        raise _invalid(
            "cfg_scale",
            params.cfg_scale,
            f"0 with --max-num-seqs {limits.max_num_seqs} (guidance needs 2)",
        )
    first = StepPlan(params, prompt_len).first
    needed = first.num_held_slots(limits.kv_block_size)
    size = (
        f"prompt ({prompt_len}) + canvas ({params.gen_length}) + generation_suffix "
        f"({len(params.suffix_token_ids)})"
    )
    if params.cfg_scale:
        size = f"twice (cfg_scale) {size}, from KV block to KV block,"
    size = f"{size} = {needed} tokens"
    if needed >= limits.max_model_len:
        raise _invalid(
            "max_tokens", size, f"less than max_model_len ({limits.max_model_len})"
        )
    if limits.num_kv_slots is not None and needed > limits.num_kv_slots:
        raise _invalid(
            "max_tokens",
            size,
            f"at most {limits.num_kv_slots} tokens, the whole KV cache",
        )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


def _invalid(parameter: str, value: object, allowed: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"{parameter} must be {allowed}; got {value}", parameter=parameter
    )
