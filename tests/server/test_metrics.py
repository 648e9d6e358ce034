# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` counts what was done, exactly."""

import io

import requests
from openai import OpenAI
from PIL import Image

from tests.golden.cases import GoldenCase, load_visual_token_counts
from tests.server.client import MODEL, chat, post, small_chat, user_message
from tests.server.metrics import Counted
from tests.server.process import ServerProcess


def test_text_request(
    client: OpenAI, server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> None:
    """Our counters and vLLM's own for diffusion models agree with the case."""
    case = golden_cases["text_32_32_32"]
    with Counted(server.url) as counted:
        chat(client, case)
    steps, positions = 32, 32 * 32
    assert counted["lladav:denoising_steps_total"] == steps
    assert counted["lladav:canvas_positions_total"] == positions
    assert counted["lladav:committed_tokens_total"] == 32
    assert counted["lladav:denoising_step_seconds_count"] == steps
    assert counted["lladav:denoising_step_seconds_sum"] > 0
    assert counted["lladav:tokens_per_step_count"] == 1
    assert counted["lladav:tokens_per_step_sum"] == 1
    assert counted["lladav:images_total"] == 0
    assert counted["lladav:visual_tokens_total"] == 0
    assert counted["vllm:diffusion_num_denoising_steps_total"] == steps
    assert counted["vllm:diffusion_num_canvas_positions_total"] == positions
    assert counted["vllm:diffusion_num_committed_tokens_total"] == 32
    assert counted["vllm:prompt_tokens_total"] == case.prompt_len
    assert counted["vllm:generation_tokens_total"] == 32


def test_committed_tokens_end_at_the_stop(
    client: OpenAI, server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> None:
    case = golden_cases["text_stop_blocks"]
    with Counted(server.url) as counted:
        chat(client, case)
    assert counted["lladav:committed_tokens_total"] == len(case.output_ids)
    assert counted["lladav:denoising_steps_total"] < case.generate.steps


def test_image_is_encoded_once(server: ServerProcess) -> None:
    """The second request finds the image in the encoder cache."""
    row = next(row for row in load_visual_token_counts() if row.width == 247)
    # A picture that no other test sends.
    picture = Image.linear_gradient("L").resize((row.width, row.height))
    png = io.BytesIO()
    picture.save(png, "PNG")
    body = small_chat(messages=[user_message("w5", png.getvalue())])
    for num_encoded in (1, 0):
        with Counted(server.url) as counted:
            response = post(server.url, "chat/completions", body)
        assert response.status_code == 200, response.text
        assert counted["lladav:images_total"] == 1
        assert counted["lladav:images_encoded_total"] == num_encoded
        assert counted["lladav:visual_tokens_total"] == row.tokens


def test_counters_start_at_zero(server: ServerProcess) -> None:
    """They are there before the first request, so that rates are right."""
    for name in ("denoising_steps", "committed_tokens", "images"):
        line = f'lladav:{name}_total{{engine="0",model_name="{MODEL}"}} 0.0\n'
        assert line in server.first_metrics


def test_metrics_bear_the_served_name(server: ServerProcess) -> None:
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    samples = [line for line in text.splitlines() if line.startswith("lladav:")]
    assert samples
    assert all(f'model_name="{MODEL}"' in sample for sample in samples)
