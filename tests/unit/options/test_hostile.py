# SPDX-License-Identifier: Apache-2.0
"""Every option, whatever is sent: refused by name, or a request that is bounded."""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_lladav.denoising.resolve import resolve
from vllm_lladav.options.kinds import LARGEST_INTEGER, OptionError
from vllm_lladav.options.options import (
    REQUEST_OPTIONS,
    SERVER_OPTIONS,
    ServerOptions,
)
from vllm_lladav.options.reading import read_request, read_server

NUM_LAYERS = 4
PRUNING = read_server({"plugin": "pruning"})

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [
            *(0, -0.0, 1, -1, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 10**5000),
            *(1e300, -1e300, 5e-324, math.inf, -math.inf, math.nan, True, 2.0, 1.5),
        ]
    ),
)
anything = st.one_of(
    numbers,
    st.none(),
    st.text(max_size=20),
    st.lists(numbers, max_size=2),
    st.dictionaries(st.text(max_size=3), numbers, max_size=2),
    st.sampled_from(["1:2:0.5", "dual", "random", "1:1:1e-300", "9" * 5000 + ":1:.5"]),
)
sent = st.dictionaries(st.sampled_from([*REQUEST_OPTIONS, "nonsense"]), anything)


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(sent)
def test_requests(values: dict[str, Any]):
    try:
        params = resolve(PRUNING, values, NUM_LAYERS, seed=0)
    except OptionError as error:
        assert error.name in values
        assert error.name in str(error) and len(str(error)) < 2000
        return
    assert "nonsense" not in values or values["nonsense"] is None
    assert 1 <= params.gen_length <= ServerOptions.max_gen_length
    assert params.num_blocks <= params.steps <= params.gen_length
    assert 1 <= params.refresh_interval <= LARGEST_INTEGER
    assert all(
        math.isfinite(value)
        for value in vars(params).values()
        if isinstance(value, int | float)
    )


@patient
@given(st.dictionaries(st.sampled_from([*SERVER_OPTIONS, "nonsense"]), anything))
def test_servers(values: dict[str, Any]):
    try:
        read_server(values)
    except ValueError as error:
        assert any(name in str(error) for name in values)
        assert len(str(error)) < 2000


@pytest.mark.parametrize("name", REQUEST_OPTIONS)
def test_no_option_takes_what_has_no_bound(name: str):
    for value in (10**5000, 1e300, -(10**400), math.nan, [[]], b""):
        with pytest.raises(OptionError) as error:
            read_request(PRUNING, {name: value})
        assert error.value.name == name


def test_steps_cost_nothing_that_change_nothing():
    """A block of n positions is done after n steps."""
    values = {"gen_length": 64, "block_length": 16, "steps": LARGEST_INTEGER // 4 * 4}
    params = resolve(PRUNING, values, NUM_LAYERS)
    assert (params.steps, params.steps_per_block) == (64, 16)
