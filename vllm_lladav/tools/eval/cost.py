# SPDX-License-Identifier: Apache-2.0
"""Operations that requests cost, by a checkpoint's config, and whether a server would
take them.
"""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.resolve import resolve
from vllm_lladav.model.flops import planned_steps, request_flops
from vllm_lladav.options.kinds import LARGEST_INTEGER, refused
from vllm_lladav.options.reading import read_server
from vllm_lladav.tools.checkpoint import Checkpoint
from vllm_lladav.tools.eval.answers import Answer
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.settings import Setting

# Many questions differ in nothing that matters here.
_request_flops = lru_cache(maxsize=1 << 16)(request_flops)


@lru_cache(maxsize=1024)
def resolved(
    setting: Setting, num_layers: int | None = None, max_num_seqs: int | None = None
) -> DenoisingParams:
    """What a server with the plugin ``pruning`` makes of a request.

    Args:
        num_layers: of the model; None if it is not known.
        max_num_seqs: of the server; None if it is not known.

    Raises:
        OptionError: for what the server would refuse.
    """
    server = read_server({"plugin": "pruning", "max_gen_length": LARGEST_INTEGER})
    params = resolve(server, setting.xargs, num_layers, seed=0)
    if max_num_seqs is not None and params.num_sequences > max_num_seqs:
        allowed = f"0 with --max-num-seqs {max_num_seqs} (guidance needs 2)"
        raise refused("cfg_scale", allowed, params.cfg_scale)
    return params


def prompt_bound(checkpoint: Checkpoint, question: Question) -> int:
    """An upper bound of the prompt's tokens, visual ones included.

    A token of text has at least one byte; the chat template's own text has fewer than
    128 tokens.
    """
    num_visual, _ = _visual(checkpoint, question.image)
    return num_visual + len(question.text.encode()) + 128


def flops(
    checkpoint: Checkpoint, setting: Setting, question: Question, answer: Answer
) -> int:
    """Floating-point operations of the whole model (vision tower, decoder, head) for
    one request. Exact unless :func:`is_estimate` says otherwise."""
    params = resolved(setting, checkpoint.shape.num_layers)
    steps = answer.masks
    if steps is None:
        steps = tuple(planned_steps(params, steps_by_block(params, answer)))
    plan = StepPlan(params, answer.prompt_len, (answer.visual_tokens,))
    _, num_tiles = _visual(checkpoint, question.image)
    return _request_flops(checkpoint.shape, plan, num_tiles, steps).total


def is_estimate(setting: Setting, answer: Answer) -> bool:
    """Whether :func:`flops` is not exact.

    Without having observed the steps, it is not known how many masks a step looked at
    once an end token was found, or with confidence decoding. Adaptive pruning decides
    in the worker how much it drops: what is counted is an upper bound.
    """
    params = resolved(setting)
    if params.pruning is not None and params.pruning.is_adaptive:
        return True
    return answer.masks is None and (params.is_confident or answer.is_ended)


def steps_by_block(params: DenoisingParams, answer: Answer) -> tuple[int, ...]:
    """Steps that ran in each block, of the first ones, if they were not observed.

    With a fixed number of transfers every block takes its steps before the next one
    begins. With confidence decoding they are taken to be spread evenly over the blocks
    that were begun: up to the one with the end token.
    """
    if not params.is_confident:
        per_block = min(params.steps_per_block, params.block_length)
        full, rest = divmod(answer.steps, per_block)
        return (per_block,) * full + ((rest,) if rest else ())
    begun = params.num_blocks
    if answer.is_ended:
        begun = min(answer.num_tokens // params.block_length + 1, begun)
    begun = max(min(begun, answer.steps), 1)
    share, remainder = divmod(answer.steps, begun)
    return tuple(share + (block < remainder) for block in range(begun))


@lru_cache(maxsize=1 << 16)
def _visual(checkpoint: Checkpoint, image: Path) -> tuple[int, int]:
    """Visual tokens and tiles of a picture."""
    with Image.open(image) as picture:
        (num_visual,), num_tiles = checkpoint.visual([picture.size])
    return num_visual, num_tiles
