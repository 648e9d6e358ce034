# SPDX-License-Identifier: Apache-2.0
"""The questions of a sweep put to a running server, by its URL."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI, OpenAIError

from vllm_lladav.tools.eval.answers import Answer
from vllm_lladav.tools.eval.questions import Question, messages
from vllm_lladav.tools.eval.settings import Setting

TIMEOUT_SECONDS = 3600


class ServerTarget:
    """A server of the OpenAI API, LLaDA-V by vllm-lladav.

    Args:
        url: with or without ``/v1``.
        concurrency: requests at once.
        model: the served name; None for the first one that the server lists.
        api_key: None for that of the environment, if there is one.
        seed: of the first question; the others have the following ones.

    Raises:
        OpenAIError: if it does not answer, or has no model.
    """

    def __init__(
        self,
        url: str,
        concurrency: int,
        model: str | None = None,
        api_key: str | None = None,
        seed: int = 0,
    ) -> None:
        url = url.rstrip("/").removesuffix("/v1")
        self._client = OpenAI(
            base_url=f"{url}/v1",
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            # Trying again would hide errors, and be measured.
            max_retries=0,
            timeout=TIMEOUT_SECONDS,
        )
        self._concurrency = concurrency
        self._seed = seed
        self._model = model or self._first_model()

    def _first_model(self) -> str:
        models = self._client.models.list().data
        if not models:
            raise OpenAIError("it lists no models")
        return models[0].id

    def ask(self, questions: Sequence[Question], setting: Setting) -> list[Answer]:
        """Keep ``concurrency`` requests running; answers come in the same order.

        Raises:
            OpenAIError: of the first request that fails. The ones that run are
                waited for, no further ones are sent.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [
                pool.submit(self._ask_one, question, setting, self._seed + number)
                for number, question in enumerate(questions)
            ]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask_one(self, question: Question, setting: Setting, seed: int) -> Answer:
        chat: Any = messages(question)
        response = self._client.chat.completions.create(
            model=self._model,
            messages=chat,
            max_tokens=setting.xargs["gen_length"],
            temperature=0,
            seed=seed,
            # Not streamed: only whole responses say how many steps ran.
            extra_body={"vllm_xargs": setting.xargs},
        )
        (choice,), usage = response.choices, response.usage
        assert usage is not None
        return Answer.with_report(
            (response.model_extra or {}).get("kv_transfer_params"),
            text=choice.message.content or "",
            num_tokens=usage.completion_tokens,
            is_ended=choice.finish_reason == "stop",
            prompt_len=usage.prompt_tokens,
        )
