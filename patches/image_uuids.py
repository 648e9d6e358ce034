# SPDX-License-Identifier: Apache-2.0
"""Clients do not name images, unless the server's options let them.

Why: caches are keyed by the name that a client gives an image (``uuid`` of a content
part, ``mm_hashes`` of ``/inference/v1/generate``), whoever the client is. Who sends
another's name and no image is answered about the other's picture, and who sends a name
first decides which picture it stands for.
How: wraps the methods of the server's chat parser that take a name, and
``ServingTokens.serve_tokens``, whose ``features`` are names and tensors.
Affects: servers of our models; ``LLM`` keeps its uuids.
Can go: when vLLM keys its caches by what an image is.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.chat_utils import AsyncMultiModalContentParser

    def parse_nameless(parse: Any, self: Any, image: Any, uuid: Any = None) -> Any:
        if is_ours(self.model_config):
            from vllm_lladav.frontend.media_rules import check_uuid

            check_uuid(self.model_config, uuid)
        return parse(self, image, uuid)

    for name in ("parse_image", "parse_image_pil", "parse_image_embeds"):
        wrap(AsyncMultiModalContentParser, name)(parse_nameless)

    @wrap(ServingTokens, "serve_tokens")
    async def serve_nameless_tokens(
        serve: Any, self: Any, request: Any, raw_request: Any = None
    ) -> Any:
        if is_ours(self.model_config):
            from vllm_lladav.frontend.media_rules import check_uuid

            try:
                check_uuid(self.model_config, request.features, "features")
            except VLLMValidationError as error:
                return self.create_error_response(error)
        return await serve(self, request, raw_request)
