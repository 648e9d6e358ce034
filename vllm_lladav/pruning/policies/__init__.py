# SPDX-License-Identifier: Apache-2.0
"""The pruning methods: a file for each, and a line in the table here."""

from vllm_lladav.pruning.policies.adaptive import Adaptive
from vllm_lladav.pruning.policies.aggregated import Aggregated
from vllm_lladav.pruning.policies.fastv import FastV
from vllm_lladav.pruning.policies.random import Random
from vllm_lladav.pruning.policies.similarity import Similarity
from vllm_lladav.pruning.policies.uniform import Uniform
from vllm_lladav.pruning.policy import Policy

_ALL: tuple[Policy, ...] = (
    FastV(),
    Aggregated(),
    Adaptive(),
    Similarity(),
    Uniform(),
    Random(),
)
_BY_NAME = {policy.name: policy for policy in _ALL}

POLICIES = tuple(_BY_NAME)
"""Names, in the order in which they are listed to users."""


def policy_of(name: str) -> Policy:
    """The method called ``name``, one of ``POLICIES``."""
    return _BY_NAME[name]
