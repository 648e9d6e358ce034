# SPDX-License-Identifier: Apache-2.0
"""lmms-eval with one more model, ``lladav``: the client of a vllm-lladav server.

It is lmms-eval's own ``openai`` client and adds what the official evaluation does
beyond it: the think mode behind the question, denoising parameters, a stop, and no
full stop at the end of an answer. What ``--model_args`` names and lmms-eval does not
know goes into ``vllm_xargs``::

    python examples/lmms_eval/lladav_client.py --model lladav --tasks docvqa_val \
        --gen_kwargs max_new_tokens=32 --model_args model=lladav,\
    base_url=http://localhost:8000/v1,api_key=EMPTY,think_mode=no_think,steps=16
"""

import inspect
from pathlib import Path
from typing import Any

from lmms_eval.__main__ import cli_evaluate
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.models.simple.openai import OpenAICompatible

OPENAI_ARGS = set(inspect.signature(OpenAICompatible.__init__).parameters)


class LladaV(OpenAICompatible):
    """``think_mode`` is ``think`` or ``no_think``; ``stop`` may contain ``\\n``."""

    def __init__(
        self, think_mode: str | None = None, stop: str | None = None, **args: Any
    ) -> None:
        super().__init__(**{k: v for k, v in args.items() if k in OPENAI_ARGS})
        self._suffix = f" /{think_mode}" if think_mode else ""
        self._stop = stop.replace("\\n", "\n") if stop else None
        self._xargs = {k: v for k, v in args.items() if k not in OPENAI_ARGS}
        self._create = self.client.chat.completions.create
        self.client.chat.completions.create = self._send

    def _send(self, messages: list[dict[str, Any]], **payload: Any) -> Any:
        """Called once per attempt, so ``messages`` stay as they are."""
        [message] = messages
        text, *images = message["content"]
        if images and "<image>" not in text["text"]:
            text = {**text, "text": text["text"] + self._suffix}
        return self._create(
            messages=[{**message, "content": [text, *images]}],
            stop=self._stop,
            extra_body={"vllm_xargs": self._xargs},
            **payload,
        )

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        results = super().generate_until(requests)
        for result in results:
            result.text = result.text.removesuffix(".").strip()
        return results


if __name__ == "__main__":
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest("lladav", simple_class_path=f"{Path(__file__).stem}.LladaV")
    )
    cli_evaluate()
