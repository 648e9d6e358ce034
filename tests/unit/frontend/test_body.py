# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests: what is read as Python does, and what is refused by name."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.frontend.body import (
    DEEPEST,
    LEAST_INTEGER,
    MOST_CONTAINERS,
    MOST_INTEGER,
    BodyError,
    read_body,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(LEAST_INTEGER, MOST_INTEGER)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_good_bodies_are_read_as_they_are(body: dict[str, Any], ascii: bool) -> None:
    text = json.dumps(body, ensure_ascii=ascii)
    assert read_body(text.encode()) == body


def test_what_is_no_json_but_python_reads() -> None:
    body = read_body(b'{"a": NaN, "b": [Infinity]}')
    assert math.isnan(body["a"])
    assert body["b"] == [math.inf]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings(encoding: str) -> None:
    assert read_body('{"a": "\u00e9\U0001f9ff"}'.encode(encoding)) == {
        "a": "\u00e9\U0001f9ff"
    }


def test_pairs_of_surrogates_are_text() -> None:
    assert read_body(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rb'{"a": {"b": ["x\ud800"]}}', "a.b.0 must be Unicode text; character 1"),
        (rb'{"a b": "\uDFFF"}', "'a b' must be Unicode"),
        (rb'{"\ud800": 1}', "a name in the body must be Unicode"),
        (rb'{"a": {"\ud800": 1}}', "a must be Unicode"),
        (b'{"a": [1, 18446744073709551616]}', "a.1 must be an integer between -2**63"),
        (b'{"a": -9223372036854775809}', "got -9223372036854775809"),
        (b'{"a": ' + b"7" * 5000 + b"}", "a must be an integer"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[]", "got a list"),
        (b"null", "got None"),
        (b'"' + b"x" * 1000 + b'"', "got a string"),
        (b"[" * 200_000, "100 levels"),
        (b'{"a":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "100 levels"),
        (b'{"a": [' + b"{}," * MOST_CONTAINERS + b"1]}", "at most 2000 lists"),
        (b'{"a": [{"b": [' + b"5," * MOST_CONTAINERS + b"1]}]}", "a.0.b has the last"),
    ],
)
def test_refused(body: bytes, message: str) -> None:
    with pytest.raises(BodyError) as refusal:
        read_body(body)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_bounds_are_inside() -> None:
    nested = b'{"a":' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    read_body(nested)
    read_body(b'{"a": [' + b"{}," * (MOST_CONTAINERS - 2) + b"1]}")
    read_body(b'{"a": "' + b"[" * 10_000 + b'"}')
    read_body(b'{"a": [[' + b"5," * 10_000 + b"1]]}")


@pytest.mark.parametrize("text", ["{", "", "{'a': 1}", '{"a": 1}}'])
def test_no_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        read_body(text.encode())


def test_a_large_good_body_costs_no_more_than_reading_it() -> None:
    body = json.dumps({"prompt": [5] * 200_000, "image": "A" * 5_000_000}).encode()
    seconds = []
    for read in (json.loads, read_body):
        begin = time.perf_counter()
        read(body)
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] < 10 * seconds[0] + 0.1
