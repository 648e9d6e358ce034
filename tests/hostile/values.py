# SPDX-License-Identifier: Apache-2.0
"""Values that a field of a request may have in JSON, and should not."""

import json
from random import Random
from typing import Any

Schema = dict[str, Any]

DEEPEST = 3
"""Levels of a value that is made by a schema."""

INTEGERS = (
    *(0, 1, 2, 3, 7, -1, -2, 100, 4096, -(10**6)),
    *(2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**70, 10**30, 10**400),
)
FLOATS = (
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 5e-324, 1e300, -1e300),
    *(float("nan"), float("inf"), float("-inf")),
)
STRINGS = (
    *("", " ", "x", "0", "1", "-1", "1e9", "NaN", "null", "true", "[]", "{}"),
    *("\0", "a\0b", "\ud800", "\udfff w1", "\udc00\ud800", "\ufffe\uffff"),
    *("\u202e1w", "\u05e9\u05dc\u05d5\u05dd", "e\u0301\u0301\u0301", "\U0001f9ff"),
    *("\r\n\r\n", "%s%n%x", "{0.__class__}", "{{ 7 * 7 }}", "../../../etc/passwd"),
    *("<image>", "<|mdm_mask|>", "<|eot_id|>", "<|start_header_id|>user", "w1 w2"),
    *("auto", "none", "text", "json_object", "file:///etc/passwd", "http://[::1"),
)

Raw = dict[str, str]
"""Place holder, a string of the JSON text, to the text that takes its place."""

_DEEP = {f"deep {kind}": text for kind, text in (
    ("list", "[" * 3000 + "]" * 3000),
    ("dict", '{"a":' * 3000 + "1" + "}" * 3000),
    ("abyss", "[" * 200_000),
)}  # fmt: skip
RAW: Raw = {
    "digits": "7" * 5000,
    "long float": "0." + "3" * 5000,
    "past floats": "1e999",
    "bad escape": r'"\ud8zz"',
    "bare word": "undefined",
    **_DEEP,
}
"""JSON, or nearly, that no value of Python is written as."""


def as_json(value: Any) -> bytes:
    """As Python writes it, NaN and lone surrogates included, with :data:`RAW`."""
    text = json.dumps(value)
    if "raw:" in text:
        for name, raw in RAW.items():
            text = text.replace(f'"raw:{name}"', raw)
    return text.encode()


def odd_string(random: Random) -> str:
    if random.random() < 0.8:
        return random.choice(STRINGS)
    length = random.choice((100, 1025, 5000, 100_000))
    return (random.choice(("x", "w7 ", "\u00e9", "\n", "\ud800")) * length)[:length]


def odd_value(random: Random, depth: int = 0) -> Any:
    """Any value of JSON, and some that are none."""
    kind = random.randrange(10 if depth < DEEPEST else 7)
    if kind == 0:
        return random.choice((None, True, False))
    if kind in (1, 2):
        return random.choice(INTEGERS)
    if kind == 3:
        return random.choice(FLOATS)
    if kind in (4, 5):
        return odd_string(random)
    if kind == 6:
        return f"raw:{random.choice(list(RAW))}" if random.random() < 0.3 else {}
    if kind == 7:
        length = random.choice((0, 1, 2, 5, 300))
        return [odd_value(random, DEEPEST)] * length
    if kind == 8:
        return [odd_value(random, depth + 1) for _ in range(random.randrange(4))]
    return {
        odd_string(random)[:2000]: odd_value(random, depth + 1)
        for _ in range(random.randrange(3))
    }


def fitting_value(schema: Schema, schemas: dict[str, Schema], random: Random) -> Any:
    """A value that mostly has the form of a JSON schema."""
    return _fitting(schema, schemas, random, 0)


def _fitting(
    schema: Schema, schemas: dict[str, Schema], random: Random, depth: int
) -> Any:
    if random.random() < 0.05:
        return odd_value(random, DEEPEST)
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if depth > DEEPEST + 2:
        return None
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            one = random.choice(schema[several])
            return _fitting(one, schemas, random, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return random.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {})
            needed = schema.get("required", [])
            return {
                name: _fitting(of_name, schemas, random, depth + 1)
                for name, of_name in known.items()
                if name in needed or random.random() < 0.2
            }
        case "array":
            of_items = schema.get("items", {})
            count = random.choice((0, 1, 1, 2, 3))
            return [
                _fitting(of_items, schemas, random, depth + 1) for _ in range(count)
            ]
        case "string":
            return random.choice(("w1 w2", "user", "system", odd_string(random)))
        case "integer":
            return random.choice((0, 1, 2, 4, random.choice(INTEGERS)))
        case "number":
            return random.choice((0, 0.5, 1, random.choice(FLOATS)))
        case "boolean":
            return random.random() < 0.5
        case "null":
            return None
    return odd_value(random, DEEPEST)
