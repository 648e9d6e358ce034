# SPDX-License-Identifier: Apache-2.0
"""Denoising statistics, as the scheduler counts them."""

from dataclasses import dataclass, field

from vllm.v1.spec_decode.metrics import SpecDecodingStats


@dataclass
class DenoisingStats(SpecDecodingStats):
    """What one scheduler iteration did.

    In the inherited fields, as vLLM uses them for diffusion models,
    ``num_drafts`` counts denoising steps (one per request and iteration),
    ``num_draft_tokens`` canvas positions and ``num_accepted_tokens`` committed
    tokens.

    Attributes:
        step_seconds: from scheduling an iteration to having its output.
        num_images: of the requests admitted.
        num_images_encoded: those that were not in the encoder cache.
        num_visual_tokens: prompt positions that images take, in requests admitted.
        num_visual_tokens_pruned: of running requests.
        num_kv_blocks_returned: KV blocks that pruning gave back to the pool.
        tokens_per_step: of the requests that ended: answer tokens per denoising step.
        prune_seconds: time of the prune points of one step, per request.
    """

    num_spec_tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    num_images: int = 0
    num_images_encoded: int = 0
    num_visual_tokens: int = 0
    num_visual_tokens_pruned: int = 0
    num_kv_blocks_returned: int = 0
    tokens_per_step: list[float] = field(default_factory=list)
    prune_seconds: list[float] = field(default_factory=list)
