# SPDX-License-Identifier: Apache-2.0
"""Several engines behind one server."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.golden.cases import GoldenCase
from tests.page.watching import body_of, watch
from tests.server.cancelling import cancel_in_every_phase
from tests.server.client import chat, openai_client
from tests.server.process import running_server

CASES = ("text_32_8_32", "img_two_pad_stacked", "prune_r75_k3_all")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_data_parallel(
    tiny_checkpoint: Path, tmp_path: Path, golden_cases: dict[str, GoldenCase]
) -> None:
    """``--data-parallel-size 2``: recorded answers, watched or not, and both engines
    work. Pruning shows that our flags reach every process."""
    flags = ("--data-parallel-size", "2", "--live-canvas", "on")
    cases = [golden_cases[name] for name in CASES] * 2
    with (
        running_server(tiny_checkpoint, tmp_path / "server.log", *flags) as server,
        openai_client(server.url) as client,
        ThreadPoolExecutor(len(cases)) as pool,
    ):
        answers = list(pool.map(lambda case: chat(client, case), cases))
        metrics = requests.get(f"{server.url}/metrics", timeout=10).text
        for case, answer in zip(cases, answers, strict=True):
            token_ids = answer.choices[0].to_dict()["token_ids"]
            assert token_ids == list(case.output_ids), case.name
        bodies = [body_of(case) for case in cases]
        for seen in pool.map(lambda body: watch(server.url, body), bodies):
            assert seen.replayed() == seen.token_ids
        cancel_in_every_phase(server.url, number=60, seed=2)
    pattern = r'^lladav:committed_tokens_total{engine="(.)".*} (.*)$'
    committed = dict(re.findall(pattern, metrics, re.MULTILINE))
    assert set(committed) == {"0", "1"}
    assert all(float(count) > 0 for count in committed.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_leaving_a_tensor_parallel_engine(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden_cases: dict[str, GoldenCase],
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    flags = ("--tensor-parallel-size", "2", "--live-canvas", "on")
    with running_server(tiny_checkpoint, tmp_path / "server.log", *flags) as server:
        for name in CASES:
            seen = watch(server.url, body_of(golden_cases[name]))
            assert seen.replayed() == list(golden_cases[name].output_ids)
        cancel_in_every_phase(server.url, number=60, seed=3)
