# SPDX-License-Identifier: Apache-2.0
"""Two ranks agree on every token: all goldens sent at once to a TP=2 engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.harness import is_servable, prompt_of, sampling_of
from tests.golden.cases import load_cases

IMAGE_CASES = ("img_square", "img_two_pad_list", "prune_r50_k2_all")
MODE_CASE = load_cases()["text_32_8_32"]
MODES = (
    {"cache": "dual", "refresh_interval": 25, "confidence_threshold": 0.05},
    {"cache": "prefix", "refresh_interval": 3},
)
ROOT = Path(__file__).parents[2]


def main(checkpoint: str) -> None:
    """Run in a process of its own: print the tokens of every case."""
    from vllm import LLM

    cases = [
        case
        for case in load_cases().values()
        if is_servable(case)
        and not case.head_gains
        and (not case.images or case.name in IMAGE_CASES)
    ]
    random = [sampling_of(case, temperature=0.8, seed=7) for case in cases[-3:]]
    llm = LLM(
        checkpoint,
        dtype="float32",
        tensor_parallel_size=2,
        max_num_seqs=32,
        max_model_len=4096,
        kv_cache_memory_bytes=1 << 27,
        additional_config={"lladav": {"plugin": "pruning"}},
    )
    modes = [sampling_of(MODE_CASE), sampling_of(MODE_CASE)]
    for params, mode in zip(modes, MODES, strict=True):
        params.extra_args |= mode
    outputs = llm.generate(
        [prompt_of(case) for case in [*cases, *cases[-3:], MODE_CASE, MODE_CASE]],
        [sampling_of(case) for case in cases] + random + modes,
        use_tqdm=False,
    )
    names = [case.name for case in cases]
    names += [f"random/{case.name}" for case in cases[-3:]]
    names += [f"mode/{mode['cache']}" for mode in MODES]
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    print("RESULT " + json.dumps(dict(zip(names, tokens, strict=True))), flush=True)


@pytest.mark.slow
def test_tensor_parallel_goldens(tiny_checkpoint: Path, engine, golden_cases):
    """The official tokens, pruned ones too; with noise, the tokens of one rank with
    the same seed."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two ranks need two cores")
    process = subprocess.run(
        [sys.executable, "-m", "tests.engine.test_tensor_parallel", tiny_checkpoint],
        cwd=ROOT,
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    results = [
        line.removeprefix("RESULT ")
        for line in process.stdout.splitlines()
        if line.startswith("RESULT ")
    ]
    assert len(results) == 1, process.stdout[-5000:]
    tokens = json.loads(results[0])
    for mode in MODES:
        params = sampling_of(MODE_CASE)
        params.extra_args |= mode
        alone = engine.answer(prompt_of(MODE_CASE), params)
        assert alone.token_ids == tokens.pop(f"mode/{mode['cache']}")
    random = {name for name in tokens if name.startswith("random/")}
    assert len(random) == 3
    greedy = {name: tuple(tokens[name]) for name in tokens.keys() - random}
    assert len(greedy) == 18 and {*IMAGE_CASES, "text_cfg"} < set(greedy)
    assert greedy == {name: golden_cases[name].output_ids for name in greedy}
    for name in random:
        case = golden_cases[name.removeprefix("random/")]
        alone = engine.answer_case(case, temperature=0.8, seed=7)
        assert alone.token_ids == tokens[name]


if __name__ == "__main__":
    main(sys.argv[1])
