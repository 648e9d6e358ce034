# SPDX-License-Identifier: Apache-2.0
"""What a client that watches is told, as JSON: ``docs/page.md`` describes it.

Steps and blocks are counted from 1, as in ``prune_stages``; positions from 0.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vllm.model_executor.layers.vocab_parallel_embedding import pad_vocab_size

from vllm_lladav.denoising.frame import Frame, Shown
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.model.families import family_of
from vllm_lladav.model.flops import StepMasks, step_flops, vision_flops
from vllm_lladav.model.picture import Picture

if TYPE_CHECKING:
    from vllm.config import ModelConfig

Event = dict[str, Any]


class CanvasEvents:
    """Of one request, whose frames come in order.

    Args:
        model_config: of the model that answers.
        tokenizer: of that model.
    """

    def __init__(self, model_config: "ModelConfig", tokenizer: Any) -> None:
        self._config = model_config.hf_config
        self._family = family_of(model_config)
        traits = traits_of(model_config)
        self._mask_token_id = traits.mask_token_id
        rows = pad_vocab_size(traits.num_tokens)
        self._shape = self._family.shape(self._config, rows)
        self._tokenizer = tokenizer
        self._began = time.monotonic()
        self._pictures: list[Picture | None] = []

    def of(self, shown: Shown) -> Iterator[Event]:
        """What a frame tells."""
        if shown.start is not None:
            yield self._start(shown.start)
        frame = Frame.from_values(shown.frame)
        if frame.step_index.step == 0:
            # A preempted request begins again.
            self._num_visual = self._plan.num_visual
            self._spent = self._vision
        yield self._step(frame)
        if frame.kept is not None:
            yield self._pruned(frame)
        self._last = frame

    def end(self, num_tokens: int) -> Event:
        """Once the answer is complete; ``num_tokens`` of it, its suffix included."""
        suffix = self._plan.params.suffix_token_ids
        if self._last.is_last:  # Else the text ended it, and there is none.
            num_tokens -= len(suffix)
        return {
            "event": "end",
            "steps": self._last.step_index.step + 1,
            "answer_tokens": num_tokens,
            "seconds": self._seconds(),
            "visual_tokens": self._last.num_visual,
            "flops": {**vars(self._spent), "total": self._spent.total},
        }

    def _start(self, start: Mapping[str, Any]) -> Event:
        params = DenoisingParams.from_values(start["params"], seed=None)
        lengths = tuple(start["lengths"])
        self._plan = StepPlan(params, start["prompt_len"], lengths)
        self._offsets = start["offsets"]
        self._pictures = [
            self._family.picture(self._config, i) for i in start["images"]
        ]
        known = [picture for picture in self._pictures if picture is not None]
        tiles = sum(picture.num_tiles for picture in known)
        self._vision = vision_flops(self._shape, tiles)
        return {
            "event": "start",
            "canvas": {
                "length": params.gen_length,
                "block_length": params.block_length,
                "answer_length": params.max_answer_tokens,
                "suffix": list(params.suffix_token_ids),
                "mask_token_id": self._mask_token_id,
            },
            "steps": params.steps,
            "prompt_tokens": self._plan.prompt_len,
            "visual_tokens": self._plan.num_visual,
            "images": [
                {"offset": offset, "tokens": length, **_described(picture)}
                for offset, length, picture in zip(
                    self._offsets, lengths, self._pictures, strict=True
                )
            ],
        }

    def _step(self, frame: Frame) -> Event:
        step = self._plan.at(frame.step_index, self._num_visual)
        masks = StepMasks(frame.step_index, frame.num_candidates, frame.num_masks)
        self._spent += step_flops(self._shape, step, masks)
        self._num_visual = frame.num_visual
        unmasked = [
            {
                "position": one.position,
                "token_id": one.token_id,
                "text": self._tokenizer.decode([one.token_id]),
                "confidence": one.confidence,
            }
            for one in frame.unmasked
        ]
        return {
            "event": "step",
            "step": frame.step_index.step + 1,
            "block": frame.step_index.block + 1,
            "step_in_block": frame.step_index.step_in_block + 1,
            "unmasked": unmasked,
            "masks_left": frame.num_masks - len(unmasked),
            "final": frame.num_final,
            "computed_tokens": step.num_rows,
            "sequence_length": step.num_slots,
            "visual_tokens": frame.num_visual,
            "seconds": self._seconds(),
            "flops": self._spent.total,
        }

    def _pruned(self, frame: Frame) -> Event:
        assert frame.kept is not None
        kept = set(frame.kept)
        starts = accumulate(self._plan.visual_lengths, initial=0)
        images, positions = [], []
        for offset, length, start, picture in zip(
            self._offsets,
            self._plan.visual_lengths,
            starts,
            self._pictures,
            strict=False,
        ):
            mine = [index for index in range(length) if start + index in kept]
            positions += [offset + index for index in mine]
            views = {} if picture is None else picture.patches(mine)
            images.append({"kept": len(mine), "views": views})
        return {
            "event": "pruned",
            "step": frame.step_index.step + 1,
            "kept": len(positions),
            "positions": positions,
            "images": images,
        }

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 4)


def _described(picture: Picture | None) -> dict[str, Any]:
    return {} if picture is None else picture.described()
