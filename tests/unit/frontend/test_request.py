# SPDX-License-Identifier: Apache-2.0
"""What a client may send, what follows from it, and how the rest is refused.

Long, because it is one list of refusals and of what lengths mean.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import (
    RepetitionDetectionParams,
    StructuredOutputsParams,
)

from tests.unit.resolving import END, ROOMY, Letters, resolved
from vllm_lladav.denoising.params import denoising_params, is_resolved
from vllm_lladav.frontend.request import (
    DefaultMaxTokens,
    Limits,
    check_supported,
    resolve,
)
from vllm_lladav.options.options import ServerOptions


def lengths(*args: Any, **kwargs: Any) -> tuple[int, int, int, int]:
    """gen_length, block_length, steps, max_answer_tokens."""
    params, _ = resolved(*args, **kwargs)
    return (
        params.gen_length,
        params.block_length,
        params.steps,
        params.max_answer_tokens,
    )


# ----------------------------------------------------------------- lengths
def test_defaults_are_those_of_the_official_demo():
    assert lengths() == (128, 128, 128, 128)


def test_server_defaults():
    server = ServerOptions(gen_length=64, block_length=16, tokens_per_step=4)
    assert lengths(server=server) == (64, 16, 16, 64)


def test_max_tokens_is_the_canvas():
    assert lengths(max_tokens=40) == (40, 40, 40, 40)


def test_max_tokens_is_rounded_up_to_blocks_and_the_answer_cut():
    server = ServerOptions(block_length=32, tokens_per_step=2)
    assert lengths(max_tokens=40, server=server) == (64, 32, 32, 40)
    assert lengths({"block_length": 16}, max_tokens=40) == (48, 16, 48, 40)


def test_max_tokens_below_gen_length_cuts_the_answer():
    assert lengths({"gen_length": 32}, max_tokens=20) == (32, 32, 32, 20)
    assert lengths({"gen_length": 32}, max_tokens=50) == (32, 32, 32, 32)


def test_filled_in_max_tokens_is_a_default_and_no_cut():
    """The server fills in max_tokens where the client sent none; a gen_length of
    the client is then the answer's length."""
    filled_in = DefaultMaxTokens(16)
    assert lengths({"gen_length": 32}, max_tokens=filled_in) == (32, 32, 32, 32)
    server = ServerOptions(gen_length=16)
    assert lengths(max_tokens=filled_in, server=server) == (16, 16, 16, 16)


def test_steps_that_do_not_divide_a_block_are_rounded_up():
    server = ServerOptions(block_length=10, tokens_per_step=4)
    assert lengths(max_tokens=20, server=server) == (20, 10, 6, 20)


def test_everything_set_by_the_client():
    extra = {"gen_length": 64, "block_length": 16, "steps": 32}
    assert lengths(extra, max_tokens=64) == (64, 16, 32, 64)


def test_whole_floats_are_integers():
    """JSON clients may send 32.0."""
    params, _ = resolved({"gen_length": 32.0, "steps": 16.0})
    assert (params.gen_length, params.steps) == (32, 16)
    assert type(params.gen_length) is type(params.steps) is int


@given(
    st.integers(1, 300),
    st.none() | st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_lengths_from_max_tokens_always_fit(max_tokens, block, server_block, per_step):
    """Whatever follows from max_tokens alone is valid, and no longer than needed."""
    server = ServerOptions(block_length=server_block, tokens_per_step=per_step)
    extra = {} if block is None else {"block_length": block}
    gen, block_length, steps, answer = lengths(
        extra, max_tokens=max_tokens, server=server
    )
    assert gen % block_length == 0
    assert steps % (gen // block_length) == 0
    assert answer == max_tokens <= gen < max_tokens + block_length
    assert steps * per_step >= gen
    assert block_length == (block or min(server_block, max_tokens))


# ----------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("extra", "fields", "parameter", "words"),
    [
        ({"gen_length": 0}, {}, "gen_length", ["got 0", "at least 1"]),
        ({"gen_length": -3}, {}, "gen_length", ["got -3", "at least 1"]),
        ({"gen_length": 2.5}, {}, "gen_length", ["got 2.5", "integer"]),
        ({"gen_length": "32"}, {}, "gen_length", ["got '32'", "integer"]),
        ({"gen_length": True}, {}, "gen_length", ["got True", "integer"]),
        ({"gen_length": [32]}, {}, "gen_length", ["got [32]", "integer"]),
        ({"gen_length": float("nan")}, {}, "gen_length", ["got nan", "integer"]),
        ({"block_length": 0}, {}, "block_length", ["got 0", "at least 1"]),
        ({"block_length": "8"}, {}, "block_length", ["got '8'", "integer"]),
        ({"steps": 0}, {}, "steps", ["got 0", "at least 1"]),
        ({"steps": 1.5}, {}, "steps", ["got 1.5", "integer"]),
        ({"gen_length": 1025}, {}, "gen_length", ["got 1025", "at most 1024"]),
        ({}, {"max_tokens": 0}, "max_tokens", ["got 0", "at least 1"]),
        (
            {"gen_length": 32, "block_length": 12},
            {},
            "block_length",
            ["got 12", "divisor of gen_length (32)"],
        ),
        (
            {"block_length": 1025},
            {"max_tokens": 2000},
            "block_length",
            ["got 1025", "at most 1024"],
        ),
        (
            {"gen_length": 32, "block_length": 8, "steps": 30},
            {},
            "steps",
            ["got 30", "multiple", "(4 of 8 positions each)"],
        ),
        (
            {"remasking": "entropy"},
            {},
            "remasking",
            ["got 'entropy'", "low_confidence, random"],
        ),
        ({"remasking": 1}, {}, "remasking", ["got 1", "low_confidence, random"]),
        ({"generation_suffix": 5}, {}, "generation_suffix", ["got 5", "a string"]),
        ({"gen_lenght": 5}, {}, "gen_lenght", ["unknown", "gen_length", "steps"]),
    ],
)
def test_refusals(extra, fields, parameter, words):
    """Every error names the parameter, what was sent, and what is allowed."""
    with pytest.raises(VLLMValidationError) as error:
        resolved(extra, **fields)
    assert error.value.parameter == parameter
    assert parameter in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_stop_that_encodes_to_nothing_is_refused():
    class Deaf(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return []

    params = SamplingParams(stop=["x"], extra_args=IN_TOKENS)
    with pytest.raises(VLLMValidationError, match="stop must be") as error:
        resolve(params, 10, ServerOptions(), ROOMY, Deaf(), END)
    assert error.value.parameter == "stop"


def test_none_means_not_set():
    assert lengths({"gen_length": None, "steps": None}, max_tokens=8) == (8, 8, 8, 8)


@pytest.mark.parametrize(
    ("limits", "parameter", "words"),
    [
        (
            Limits(
                max_prompt_len=99,
                max_model_len=999,
                kv_block_size=16,
                max_num_seqs=8,
                num_kv_slots=999,
                num_layers=4,
            ),
            "prompt",
            ["100 tokens", "at most 99", "tokenizer_model_max_length"],
        ),
        (
            Limits(
                max_prompt_len=100,
                max_model_len=137,
                kv_block_size=16,
                max_num_seqs=8,
                num_kv_slots=999,
                num_layers=4,
            ),
            "max_tokens",
            ["(100)", "(32)", "(5)", "= 137 tokens", "max_model_len (137)"],
        ),
        (
            Limits(
                max_prompt_len=100,
                max_model_len=138,
                kv_block_size=16,
                max_num_seqs=8,
                num_kv_slots=136,
                num_layers=4,
            ),
            "max_tokens",
            ["(100)", "(32)", "(5)", "= 137 tokens", "at most 136", "KV cache"],
        ),
    ],
)
def test_too_large_requests_are_refused_with_the_numbers(limits, parameter, words):
    extra = {"generation_suffix": "after", "gen_length": 32}
    with pytest.raises(VLLMValidationError) as error:
        resolved(extra, prompt_len=100, limits=limits)
    assert error.value.parameter == parameter
    for word in words:
        assert word in str(error.value)


def test_largest_request_that_fits():
    limits = Limits(
        max_prompt_len=100,
        max_model_len=138,
        kv_block_size=16,
        max_num_seqs=8,
        num_kv_slots=137,
        num_layers=4,
    )
    extra = {"generation_suffix": "after", "gen_length": 32}
    params, _ = resolved(extra, prompt_len=100, limits=limits)
    assert params.num_tail_tokens == 37


def test_max_tokens_is_a_bound():
    """A canvas that the client did not ask for is as long as fits."""
    assert lengths(max_tokens=4096) == (1024, 128, 1024, 1024)
    assert lengths({"block_length": 96}, max_tokens=1000) == (960, 96, 960, 960)
    server = ServerOptions(max_gen_length=100, gen_length=100)
    assert lengths(max_tokens=4096, server=server) == (100, 100, 100, 100)


@given(
    st.none() | st.integers(1, 5000),
    st.none() | st.integers(1, 300),
    st.integers(1, 600),
    st.integers(1, 700),
    st.none() | st.integers(1, 700),
    st.sampled_from((0.0, 1.5)),
    st.sampled_from(("", "after")),
)
def test_no_longer_canvas_would_fit(
    max_tokens, block, prompt_len, max_model_len, num_kv_slots, cfg_scale, suffix
):
    """It has the most blocks that fit, or that the answer needs."""
    limits = replace(ROOMY, max_model_len=max_model_len, num_kv_slots=num_kv_slots)
    extra = {"cfg_scale": cfg_scale, "generation_suffix": suffix}
    if block is not None:
        extra["block_length"] = block

    def fits(gen_length):
        asked = {**extra, "gen_length": gen_length, "block_length": 1}
        with suppress(VLLMValidationError):
            return resolved(asked, prompt_len=prompt_len, limits=limits)
        return None

    try:
        gen, block_length, _, answer = lengths(
            extra, max_tokens=max_tokens, prompt_len=prompt_len, limits=limits
        )
    except VLLMValidationError:
        assert not fits(block or 1)
        return
    assert fits(gen)
    wanted = 128 if max_tokens is None else max_tokens
    assert answer == min(wanted, gen)
    if gen < wanted:
        # A block whose length nobody set is shorter where no whole one fits.
        more = gen + (1 if block is None and gen < 128 else block_length)
        assert more > 1024 or not fits(more)


# ----------------------------------------------------------------- where it ends
IN_TOKENS = {"stop_search": "tokens"}


def test_stop_strings_are_left_to_the_text():
    params, sampling = resolved(
        stop=["yz", "a"], stop_token_ids=[55], include_stop_str_in_output=False
    )
    assert params.stop_sequences == ((55,),)
    assert params.stops == (55,)
    assert sampling.stop == ["yz", "a"]
    assert sampling.stop_token_ids == []


def test_stops_are_encoded_in_order_and_token_ids_come_last():
    params, sampling = resolved(IN_TOKENS, stop=["yz", "a"], stop_token_ids=[55, 44])
    assert params.stop_sequences == ((121, 122), (97,), (55,), (44,))
    assert params.stops == ("yz", "a", 55, 44)
    assert sampling.stop == []


def test_stop_as_one_string():
    params, _ = resolved(IN_TOKENS, stop="yz")
    assert params.stop_sequences == ((121, 122),)


def test_stop_in_the_output():
    """The text can have it; the canvas is cut before it."""
    asked = {"include_stop_str_in_output": True}
    _, sampling = resolved(stop=["yz"], **asked)
    assert sampling.include_stop_str_in_output
    for extra, stops in ((IN_TOKENS, {"stop": ["yz"]}), ({}, {"stop_token_ids": [5]})):
        with pytest.raises(VLLMValidationError) as error:
            resolved(extra, **stops, **asked)
        assert error.value.parameter == "include_stop_str_in_output"


@pytest.mark.parametrize(
    ("fields", "end_token_id"),
    [
        ({}, END),
        ({"ignore_eos": True}, None),
        ({"stop": ["a"]}, END),
        # Asked for by the client: it keeps its place among the stops.
        ({"stop_token_ids": [END]}, None),
        ({"stop_token_ids": [END, 5]}, None),
        ({"stop": [chr(END)]}, END),
        ({"stop": [chr(END)], "extra": IN_TOKENS}, None),
        ({"stop": [chr(END) + "a"], "extra": IN_TOKENS}, END),
    ],
)
def test_end_token(fields, end_token_id):
    params, _ = resolved(**fields)
    assert params.end_token_id == end_token_id


def test_suffix_is_encoded_without_special_tokens():
    params, sampling = resolved({"generation_suffix": "so"}, max_tokens=4)
    assert params.suffix_token_ids == (115, 111)
    assert sampling.max_tokens == 6, "vLLM must let the suffix through"


# ----------------------------------------------------------------- randomness
def test_nothing_is_drawn_where_nothing_is_random():
    params, sampling = resolved(temperature=0.0)
    assert params.seed is None and sampling.seed is None
    assert not params.is_random


@pytest.mark.parametrize(
    ("extra", "temperature"), [({}, 0.5), ({"remasking": "random"}, 0.0)]
)
def test_a_seed_is_drawn_once_for_all_ranks(extra, temperature):
    seeds = {resolved(extra, temperature=temperature)[0].seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)


def test_seed_of_the_client_is_kept():
    params, sampling = resolved(temperature=0.5, seed=0)
    assert params.seed == sampling.seed == 0


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 2**70])
def test_seed_past_64_bits_is_refused(seed):
    with pytest.raises(VLLMValidationError, match="seed must be between"):
        check_supported(SamplingParams(seed=seed))


def test_seed_without_randomness_is_ignored():
    """OpenAI clients send a seed with temperature 0."""
    params, _ = resolved(temperature=0.0, seed=5)
    assert not params.is_random


def test_temperature_and_remasking_are_passed_on():
    server = ServerOptions(remasking="random")
    assert resolved(server=server)[0].remasking == "random"
    extra = {"remasking": "low_confidence"}
    assert resolved(extra, server=server)[0].remasking == "low_confidence"
    assert resolved(temperature=0.7)[0].temperature == 0.7


# ----------------------------------------------------------------- transport
def test_resolved_parameters_survive_the_way_to_the_engine():
    """As msgpack makes lists of tuples."""
    params, sampling = resolved(
        {"generation_suffix": "so"}, stop=["ab"], temperature=0.5, seed=3
    )
    assert is_resolved(sampling)
    assert not is_resolved(SamplingParams()) and not is_resolved(None)
    sent = msgspec.msgpack.encode(sampling.extra_args)
    sampling.extra_args = msgspec.msgpack.decode(sent)
    assert denoising_params(sampling) == params


def test_every_sample_has_its_own_seed():
    """vLLM gives sample i of n the seed plus i; it must reach the canvas."""
    _, sampling = resolved(temperature=0.5, seed=3)
    child = sampling.clone()
    child.seed = 4
    assert denoising_params(child).seed == 4


# ----------------------------------------------------------------- unsupported
UNSUPPORTED: dict[str, Any] = {
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "repetition_detection": RepetitionDetectionParams(
        max_pattern_size=4, min_pattern_size=1, min_count=2
    ),
    "logit_bias": {5: 1.0},
    "allowed_token_ids": [5],
    "bad_words": ["x"],
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": np.zeros((1, 1), dtype=np.int32),
    "logprob_token_ids": [5],
    "structured_outputs": StructuredOutputsParams(regex="a"),
    "thinking_token_budget": 5,
    "trace_decode_token_ids": [5],
    "min_tokens": 3,
    "min_p": 0.1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameters_are_refused_by_name(name):
    params = SamplingParams(temperature=1.0, **{name: UNSUPPORTED[name]})
    with pytest.raises(VLLMValidationError, match="not supported") as error:
        check_supported(params)
    assert error.value.parameter == name
    assert name in str(error.value)
    assert error.value.value == str(UNSUPPORTED[name])


def test_all_logprobs_are_refused():
    params = SamplingParams(logprobs=-1)
    with pytest.raises(VLLMValidationError, match="at least 0; got -1") as error:
        check_supported(params)
    assert error.value.parameter == "logprobs"


@pytest.mark.parametrize("temperature", [float("inf"), float("nan")])
def test_infinite_temperature_is_refused(temperature):
    params = SamplingParams()
    params.temperature = temperature
    with pytest.raises(VLLMValidationError, match="finite") as error:
        check_supported(params)
    assert error.value.parameter == "temperature"


HARMLESS = {
    *("n", "seed", "temperature", "top_k", "top_p", "max_tokens", "extra_args"),
    *("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "logprobs"),
    # What the front end does with the answer, or vLLM keeps for itself.
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
    *("output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"),
    # Belong to others, without which they do nothing.
    *("prompt_logprob_start", "flat_logprobs", "routed_experts_prompt_start"),
    "skip_reading_prefix_cache",
    "watermarking",  # Opts out of what the server's configuration asks for.
}


def test_every_field_of_vllm_is_accounted_for():
    """A parameter that a new vLLM adds is neither ignored nor refused by chance."""
    public = {name for name in SamplingParams.__struct_fields__ if name[0] != "_"}
    unsupported = set(UNSUPPORTED)
    assert public == HARMLESS | unsupported
    assert not HARMLESS & unsupported


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"logit_bias": {}},
        {"bad_words": []},
        {"stop": ["a"], "stop_token_ids": [4], "seed": 5, "n": 2},
        {"skip_special_tokens": False, "detokenize": False, "ignore_eos": True},
    ],
)
def test_supported_parameters_pass(fields):
    check_supported(SamplingParams(**fields))


@pytest.mark.parametrize(
    ("fields", "top_k", "top_p"),
    [({}, 0, 1.0), ({"top_k": -1}, 0, 1.0), ({"top_k": 5, "top_p": 0.9}, 5, 0.9)],
)
def test_top_k_and_top_p(fields: dict[str, Any], top_k: int, top_p: float):
    params, _ = resolved(temperature=0.5, **fields)
    assert (params.top_k, params.top_p) == (top_k, top_p)
