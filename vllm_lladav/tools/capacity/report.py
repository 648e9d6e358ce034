# SPDX-License-Identifier: Apache-2.0
"""The printed tables and the JSON of ``vllm-lladav capacity``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vllm_lladav.tools.capacity.machine import describe
from vllm_lladav.tools.capacity.model import (
    CONCURRENCY,
    ENOUGH,
    FULL_STEPS,
    MORE_WOULD_HELP,
    Capacity,
)
from vllm_lladav.tools.capacity.step import seconds_by_bound, seconds_of

Rows = Sequence[Sequence[str]]


def to_values(capacity: Capacity) -> dict[str, Any]:
    """The content of ``--json``: bytes, seconds, floating-point operations."""
    engine, count = capacity.engine, capacity.requests
    first, later = capacity.load.steps[0], capacity.load.later
    parts = capacity.parts(count)
    seconds, num_steps = seconds_of(parts), len(capacity.load.steps)
    per_second = capacity.requests_per_second(count)
    plan, enough = capacity.plan, capacity.enough_requests
    return {
        "machine": asdict(capacity.machine),
        "request": {
            "prompt_tokens": plan.prompt_len,
            "visual_tokens": plan.num_visual,
            "tiles": capacity.num_tiles,
            "gen_length": plan.params.gen_length,
            "steps": num_steps,
            "flops": sum(part.flops for part in capacity.parts(1)) * num_steps,
        },
        "memory": {
            "weights": engine.weight_bytes,
            "activations": engine.activation_bytes,
            "logits_tile": engine.logits_tile_bytes,
            "embeds_room": capacity.embeds_room_bytes,
            "kv_pool": capacity.pool_bytes,
            "kv_blocks": capacity.pool_blocks,
            "request_kv_first": first.blocks * engine.block_bytes,
            "request_kv_later": later.blocks * engine.block_bytes,
            "request_kv_blocks_first": first.blocks,
            "request_kv_blocks_later": later.blocks,
            "request_embeds": capacity.embeds_bytes,
        },
        "limits": capacity.limits,
        "requests_at_once": count,
        "requests_in_a_step": capacity.active(count),
        "limited_by": capacity.limit,
        "step": {
            "seconds": seconds,
            "parts": [asdict(part) for part in parts],
            "seconds_by_bound": seconds_by_bound(parts),
        },
        "steps_per_second": 1 / seconds,
        "request_steps_per_second": capacity.active(count) / seconds,
        "requests_per_second": per_second,
        "canvas_tokens_per_second": per_second * plan.params.gen_length,
        "request_seconds": count / per_second,
        "request_seconds_alone": capacity.burst_seconds(1),
        "enough_requests": enough,
        "enough_request_seconds": enough / capacity.requests_per_second(enough),
        "gain_of_twice_the_requests": capacity.gain_of_more,
        "gain_of_no_full_step_limit": capacity.gain_of_no_turns,
        "bound": capacity.bound,
    }


def to_text(capacity: Capacity, title: str) -> str:
    """The printed tables: memory, requests at once, a mean step, and rates."""
    values = to_values(capacity)
    limits = [
        [name, str(number), "<- the least" if name == capacity.limit else ""]
        for name, number in values["limits"].items()
    ]
    return "\n".join(
        [
            title,
            *(f"  {line}" for line in _describe(capacity)),
            "\nMemory of a rank (GB are 10^9 bytes)",
            *_table(_memory_rows(values["memory"], capacity.engine.max_batched_tokens)),
            "\nRequests at once, as limited by",
            *_table(limits),
            f"\nA mean step with {_describe_active(capacity)}",
            *_table(_part_rows(values["step"])),
            "\nRates",
            *_table(_rate_rows(values)),
            f"\n{ENOUGH:.0%} of the requests per second take "
            f"{values['enough_requests']} at once, of "
            f"{values['enough_request_seconds']:.2f} seconds each.",
            f"Bound: {_describe_bound(capacity)}",
        ]
    )


def _memory_rows(memory: Mapping[str, Any], max_batched_tokens: int) -> Rows:
    largest_step = memory["activations"] + memory["logits_tile"]
    first, later = memory["request_kv_first"], memory["request_kv_later"]
    first_blocks = f"{memory['request_kv_blocks_first']} blocks"
    later_blocks = f"{memory['request_kv_blocks_later']:g} blocks"
    rows = [
        ("weights", memory["weights"], ""),
        ("largest step", largest_step, f"{max_batched_tokens} tokens, estimated"),
        ("room for prompt embeddings", memory["embeds_room"], ""),
        ("KV blocks", memory["kv_pool"], f"{memory['kv_blocks']} blocks"),
        ("a request's KV, to be admitted", first, first_blocks),
        ("a request's KV, after its first step", later, later_blocks),
        ("a request's prompt embeddings", memory["request_embeds"], ""),
    ]
    return [(name, f"{size / 1e9:.3f} GB", note) for name, size, note in rows]


def _part_rows(step: Mapping[str, Any]) -> Rows:
    return [
        [
            part["name"],
            f"{part['seconds'] * 1e3:.2f} ms",
            f"{part['seconds'] / step['seconds']:.0%}",
            f"{part['flops'] / 1e12:.3f} TFLOP",
            f"{part['bytes'] / 1e9:.2f} GB",
            part["bound"],
        ]
        for part in step["parts"]
    ]


def _rate_rows(values: Mapping[str, Any]) -> Rows:
    rates = [
        ("steps per second", "steps_per_second", ".2f"),
        ("steps of requests per second", "request_steps_per_second", ".1f"),
        ("requests per second", "requests_per_second", ".3f"),
        ("canvas tokens per second", "canvas_tokens_per_second", ".1f"),
        ("seconds of a request", "request_seconds", ".2f"),
        ("seconds of a request alone", "request_seconds_alone", ".2f"),
    ]
    return [(name, format(values[key], form), "") for name, key, form in rates]


def _describe(capacity: Capacity) -> list[str]:
    plan, params = capacity.plan, capacity.plan.params
    kept = plan.first.num_visual_after
    num_full = sum(load.full for load in capacity.load.steps)
    pruned = f", {kept} after pruning" if kept < plan.num_visual else ""
    return [
        f"machine: {describe(capacity.machine)}",
        f"request: {plan.prompt_len - plan.num_visual} text and {plan.num_visual} "
        f"visual tokens{pruned}; a canvas of {params.gen_length} in blocks of "
        f"{params.block_length}",
        f"steps: {len(capacity.load.steps)}, of which {num_full} compute all tokens "
        f"(cache={params.cache})",
    ]


def _describe_active(capacity: Capacity) -> str:
    count = capacity.requests
    active = capacity.active(count)
    if active == count:
        return f"{count} requests"
    return (
        f"{active:.3g} of {count} requests, while others wait for a full step "
        f"(--full-step-tokens {capacity.engine.full_step_tokens})"
    )


def _describe_bound(capacity: Capacity) -> str:
    bound, change, gain = capacity.bound, "twice the requests", capacity.gain_of_more
    if bound == FULL_STEPS:
        change, gain = "without it requests", capacity.gain_of_no_turns
    elif capacity.limit == CONCURRENCY and gain > MORE_WOULD_HELP:
        bound += ", with this few requests"
    return f"{bound}: {change} would be served {1 + gain:.2f} times as fast"


def _table(rows: Rows) -> Iterator[str]:
    """Aligned lines; the first and the last column are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, note in rows:
        aligned = map(str.rjust, numbers, widths[1:])
        yield "  " + "  ".join([name.ljust(widths[0]), *aligned, note]).rstrip()
