# SPDX-License-Identifier: Apache-2.0
"""Pruning as a client of the server sees it."""

from openai import OpenAI

from tests.golden.cases import GoldenCase
from tests.server.client import chat, chat_fields, post, small_chat, user_message
from tests.server.metrics import Counted
from tests.server.process import ServerProcess


def test_golden(
    client: OpenAI, server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> None:
    """The recorded tokens, and what was done in response and metrics."""
    case = golden_cases["prune_r75_k3_all"]
    assert case.prune_result is not None
    with Counted(server.url) as counted:
        answer = chat(client, case).to_dict()
    assert answer["choices"][0]["token_ids"] == list(case.output_ids)  # type: ignore
    assert answer["usage"]["prompt_tokens"] == case.prompt_len  # type: ignore
    num_kept, num_dropped = case.prune_result.n_kept, case.prune_result.n_dropped
    report = answer["kv_transfer_params"]["lladav"]  # type: ignore
    assert report["visual_tokens"] == case.prune_result.n_visual
    assert report["visual_tokens_kept"] == num_kept
    assert report["denoising_steps"] == case.generate.steps
    # 128 slots in a KV block of the CPU: 2,114 tokens are 16 of them and a half.
    assert report["kv_blocks_returned"] in (16, 17)
    assert counted["lladav:visual_tokens_total"] == case.prune_result.n_visual
    assert counted["lladav:visual_tokens_pruned_total"] == num_dropped
    assert counted["lladav:kv_blocks_returned_total"] == report["kv_blocks_returned"]
    assert counted["lladav:prune_seconds_count"] == 1
    assert counted["lladav:prune_seconds_sum"] > 0


def test_half_is_pruned_by_default(
    client: OpenAI, golden_cases: dict[str, GoldenCase]
) -> None:
    """``--plugin pruning`` prunes; rate 0 does not."""
    case = golden_cases["img_square"]
    fields = chat_fields(case)
    args = fields["extra_body"]["vllm_xargs"]
    args |= {"gen_length": 8, "block_length": 8, "steps": 2}
    answers = {}
    for rate in (None, 0, 0.5):
        args["prune_rate"] = rate
        if rate is None:
            del args["prune_rate"]
        answer = client.chat.completions.create(**fields).to_dict()
        report = answer["kv_transfer_params"]["lladav"]  # type: ignore
        dropped = report["visual_tokens"] - report["visual_tokens_kept"]
        assert dropped == (0 if rate == 0 else sum(case.visual_tokens) // 2)
        answers[rate] = answer["choices"][0]["token_ids"]  # type: ignore
    assert answers[None] == answers[0.5]


def test_text_is_untouched(server: ServerProcess) -> None:
    body = small_chat(messages=[user_message("w1 w2")], return_token_ids=True)
    with Counted(server.url) as counted:
        response = post(server.url, "chat/completions", body).json()
    report = response["kv_transfer_params"]["lladav"]
    assert report["visual_tokens"] == report["kv_blocks_returned"] == 0
    assert counted["lladav:prune_seconds_count"] == 0
