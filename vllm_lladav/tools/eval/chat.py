# SPDX-License-Identifier: Apache-2.0
"""A question as OpenAI messages."""

import base64
import mimetypes
import uuid
from typing import Any

from vllm_lladav.tools.eval.questions import Question


def messages(question: Question) -> list[dict[str, Any]]:
    """OpenAI messages with the question's picture and text.

    The picture gets a name of its own every time, under which vLLM would cache what is
    made of it: no setting may find the pictures of the one before.
    """
    kind = mimetypes.guess_type(question.image)[0] or "image/png"
    data = base64.b64encode(question.image.read_bytes()).decode()
    picture = {
        "type": "image_url",
        "image_url": {"url": f"data:{kind};base64,{data}"},
        "uuid": uuid.uuid4().hex,
    }
    text = {"type": "text", "text": question.text}
    return [{"role": "user", "content": [picture, text]}]
