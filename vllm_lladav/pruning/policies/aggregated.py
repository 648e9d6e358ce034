# SPDX-License-Identifier: Apache-2.0
"""The attention that a token receives in all layers up to the prune layer."""

from vllm_lladav.pruning.policies.fastv import FastV


class Aggregated(FastV):
    """FastV's score, added up over layers; the masks of the answer are asked."""

    name = "aggregated"
    default_queries = "answer"

    def observes(self, layer: int, prune_layer: int) -> bool:
        return layer <= prune_layer
