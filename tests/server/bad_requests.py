# SPDX-License-Identifier: Apache-2.0
"""Chat requests that must be refused, and what the refusal must name."""

from typing import Any, NamedTuple

from tests.server.client import Json, small_chat


class BadRequest(NamedTuple):
    """Attributes:
    name: of the test.
    body: of ``POST /v1/chat/completions``. It may hold NaN and infinity, which
        Python's ``json`` writes and reads although JSON does not know them.
    mentions: what the error message must contain: the parameter, as the client
        knows it, and where it matters the numbers.
    """

    name: str
    body: Json
    mentions: tuple[str, ...]


def _chat(name: str, *mentions: str, **fields: Any) -> BadRequest:
    """A request that is valid but for ``fields``; the first one is at fault."""
    return BadRequest(name, small_chat(**fields), mentions or (next(iter(fields)),))


def _xargs(name: str, *mentions: str, **xargs: Any) -> BadRequest:
    """The same for ``vllm_xargs``."""
    body = small_chat(vllm_xargs={"gen_length": 4, "steps": 2, **xargs})
    return BadRequest(name, body, mentions or (next(iter(xargs)),))


def _words(count: int) -> list[Json]:
    return _says(" w7" * count)


def _says(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def _nested(levels: int) -> list[Any]:
    return [_nested(levels - 1)] if levels else []


def _image(name: str, url: str, *mentions: str) -> BadRequest:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = small_chat(messages=[{"role": "user", "content": content}])
    return BadRequest(name, body, ("image_url", *mentions))


_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object"}},
}
_TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}

_SAMPLING: Json = {"temperature": 1}  # Without it, vLLM ignores top_p and the like.

BAD_REQUESTS = [
    # What vllm_xargs may hold.
    _xargs("unknown_xarg", "stepz", "gen_length, block_length, steps", stepz=4),
    _xargs("steps_zero", steps=0),
    _xargs("steps_negative", "steps", "-1", steps=-1),
    _xargs("steps_fraction", "steps", "1.5", steps=1.5),
    _xargs("steps_string", steps="x"),
    _xargs("steps_infinite", steps=float("inf")),
    _xargs("steps_not_per_block", "steps", "2 of 2", steps=3, block_length=2),
    _xargs("steps_past_32_bits", "steps", "2147483647", steps=2**31),
    # vLLM's own bound, of all integers in vllm_xargs.
    _xargs("steps_of_many_digits", "between -2**63", steps=10**400),
    _xargs("refresh_interval_whole_float", refresh_interval=1e300),
    _xargs("cfg_scale_huge", "cfg_scale", "at most 100", cfg_scale=1e300),
    _xargs("deadline_negative", "deadline_seconds", "1000000", deadline_seconds=-1),
    _xargs("deadline_nan", "deadline_seconds", deadline_seconds=float("nan")),
    _xargs("deadline_text", "deadline_seconds", "got", deadline_seconds="soon"),
    _xargs("unknown_xarg_long", "unknown name", **{"x" * 100_000: 1}),
    _xargs("gen_length_zero", gen_length=0),
    _xargs("gen_length_negative", gen_length=-8),
    _xargs("gen_length_too_long", "gen_length", "1024", gen_length=1025),
    _xargs("block_length_zero", block_length=0),
    _xargs("block_length_no_divisor", "block_length", "(4)", block_length=3),
    _xargs("remasking_unknown", "remasking", "low_confidence", remasking="foo"),
    _xargs("suffix_number", generation_suffix=7),
    _xargs(
        "suffix_long", "generation_suffix", "4096", generation_suffix="w7 " * 1_000_000
    ),
    _xargs("prune_stages_long", "1024", prune_stages="1:2:0.5," * 1000),
    # Pruning.
    _xargs("prune_rate_one", "prune_rate", "below 1", prune_rate=1),
    _xargs("prune_rate_nan", "prune_rate", "finite", prune_rate=float("nan")),
    _xargs("prune_min_huge", prune_min_visual_tokens=2**40),
    _xargs("prune_layer_zero", "prune_layer", "at least 1", prune_layer=0),
    _xargs("prune_layer_too_deep", "prune_layer", "at most 4", prune_layer=5),
    _xargs("prune_policy_unknown", "prune_policy", "fastv", prune_policy="best"),
    _xargs("prune_stages_order", "must come after", prune_stages="1:2:0.5,1:1:0.5"),
    # Length and temperature.
    _chat("max_tokens_zero", max_tokens=0),
    _chat("max_tokens_negative", max_tokens=-1),
    _chat("max_tokens_past_context", max_tokens=100_000, vllm_xargs={}),
    _chat("temperature_nan", temperature=float("nan")),
    _chat("temperature_infinite", temperature=float("inf")),
    _chat("temperature_negative", temperature=-0.5),
    # What a masked-diffusion model cannot do.
    _chat("top_logprobs", logprobs=True, top_logprobs=-1),
    _chat("top_logprobs_many", "logprobs", "20", logprobs=True, top_logprobs=21),
    _chat("prompt_logprobs", prompt_logprobs=1),
    _chat("logit_bias", logit_bias={"5": 10}),
    _chat("presence_penalty", presence_penalty=0.5),
    _chat("frequency_penalty", frequency_penalty=0.5),
    _chat("repetition_penalty", repetition_penalty=1.2),
    _chat("json_schema", "response_format", response_format=_SCHEMA),
    _chat("json_object", "response_format", response_format={"type": "json_object"}),
    _chat("structured_outputs", structured_outputs={"choice": ["yes", "no"]}),
    _chat("tools", tools=[_TOOL], tool_choice="none"),
    _chat("tools_auto", "tool choice", tools=[_TOOL]),
    _chat("tools_forced", "tool_choice", tools=[_TOOL], tool_choice="required"),
    _chat("use_beam_search", use_beam_search=True, n=2),
    _chat("min_tokens", min_tokens=2),
    _chat("min_p", min_p=0.1, **_SAMPLING),
    _chat("bad_words", bad_words=["w1"]),
    _chat("allowed_token_ids", allowed_token_ids=[5, 6]),
    _chat(
        "include_stop",
        "include_stop_str_in_output",
        include_stop_str_in_output=True,
        stop_token_ids=[5],
    ),
    # What no message to the engine can hold, and what validators stumble over.
    _chat("structured_outputs_number", structured_outputs=5),
    _chat("structured_outputs_list", structured_outputs=[{}]),
    _chat("stream_interval_huge", "stream_interval", str(2**70), stream_interval=2**70),
    _chat("priority_huge", priority=-(2**64)),
    _chat("top_k_huge", top_k=2**64),
    _chat("number_of_many_digits", "cache_salt.0", "2**64 - 1", cache_salt=[10**4000]),
    _xargs("steps_huge", "vllm_xargs.steps", str(2**70), steps=2**70),
    _chat("request_id_surrogate", "request_id", "Unicode", request_id="a\ud800"),
    _chat("name_surrogate", "metadata", "Unicode", metadata={"\udfff": "x"}),
    _chat("text_surrogate", "messages.0.content", messages=_says("w1\ud800")),
    _chat("stop_surrogate", "stop.1", stop=["w7", "\udc00"]),
    _chat("nested_deep", "100 levels", metadata=_nested(100)),
    _chat("many_objects", "at most 2000 lists", messages=[{}] * 3000),
    # Images that cannot be loaded.
    _image(
        "image_file", "file:///etc/passwd", "/etc/passwd", "allowed-local-media-path"
    ),
    _image("image_unreachable", "http://127.0.0.1:1/x.png", "gives no image"),
    _image("image_without_base64", "data:image/png,abc", "base64"),
    _image("image_not_base64", "data:image/png;base64,!!!", "base64"),
    _image("image_no_port", "http://127.0.0.1:x/", "gives no image"),
    _image("image_other_scheme", "ftp://127.0.0.1/x.png", "HTTP"),
    # Stops, prompts.
    _chat("stop_empty", stop=[""]),
    _chat("stop_empty_string", stop=""),
    _chat("stop_long", "stop", "1024", "2000000", stop="x" * 2_000_000),
    _chat("stop_many", "stop", "at most 4", stop=["w7"] * 5),  # vLLM's own bound.
    _chat("stop_token_ids_many", "stop", "32", stop_token_ids=[*range(5, 38)]),
    _chat("no_messages", "empty conversation", messages=[]),
    _chat("unknown_role", "tool", messages=[{"role": "tool", "content": "w1"}]),
    _chat("prompt_too_long", "prompt", "8192", messages=_words(5000)),
    _chat("prompt_past_context", "16384", messages=_words(17000)),
]
