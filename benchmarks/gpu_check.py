# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's GPU answers as a CPU does, and how fast (``make gpu-check``).

    python benchmarks/gpu_check.py --results results/gpu-check

Writes ``gpu-check.json`` and ``gpu-check.md``. Stages, each in a process of its own, so
that one that fails leaves the others alone:

    tokens        lladav-tiny in float32, alone and in one batch: exact, caches, pruned,
                  guided; its tokens against those that ``--record`` wrote on a CPU. All
                  are expected to be the same.
    tokens-graphs the same with cached steps as whole CUDA graphs
    tokens-auto   the same in the dtype that the machine is served with; tokens may
                  differ where two are about as likely
    waits         lines of code that wait for the device in a step, exact and dual
    speed         the released 8B shape with random weights, an image of 384 x 384
                  (1,485 visual tokens): exact, dual cache, pruned, several at once

A machine without a GPU does ``tokens``, ``tokens-auto`` and ``speed``, this one with
the mid-size random checkpoint, fewer requests and short canvases: 4 minutes on two
cores.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import noise_images, parse_size, with_environment
from engine import ask, ask_without_images, engine_options

from vllm_lladav.tools.engine import start_engine

RECORDED = Path(__file__).with_name("gpu_check_answers.json")
STAGES = ("tokens", "tokens-graphs", "tokens-auto", "waits", "speed")
ON_CPUS = ("tokens", "tokens-auto", "speed")
BLOCKS = {"gen_length": 32, "block_length": 16}
WHOLE_GRAPHS = {
    "compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
    # Captured are steps of the server's block length.
    "additional_config": {"lladav": {"plugin": "pruning", "prune_rate": 0, **BLOCKS}},
}

PRUNED = {"prune_rate": 0.75, "prune_layer": 6}
DUAL = {"cache": "dual"}
CASES: Mapping[str, dict[str, Any]] = {
    "exact": {},
    "half_the_steps": {"steps": 16},
    "fast": {"denoising": "fast"},
    "prompt": {"cache": "prompt", "refresh_interval": 4},
    "prefix": {"cache": "prefix"},
    "dual": DUAL,
    "pruned": PRUNED,
    "pruned_dual": {**PRUNED, **DUAL},
    "pruned_compact": {**PRUNED, **DUAL, "prune_positions": "compact"},
    "pruned_stages": {"prune_stages": "1:4:0.2,1:6:0.3,8:6:0.3"},
    "pruned_adaptive": {**PRUNED, "prune_policy": "adaptive"},
    "guided": {"cfg_scale": 1.0},
    "guided_pruned_dual": {**PRUNED, **DUAL, "cfg_scale": 1.0},
}
"""``vllm_xargs`` of the requests to lladav-tiny, by name."""

WITHOUT_GPU = {"requests": [1, 4], "gen_length": 16, "block_length": 8}
"""Defaults of ``speed`` on a CPU."""

SPEED: Mapping[str, dict[str, Any]] = {
    "exact": {"denoising": "exact"},
    "pruned": {"denoising": "exact", "prune_rate": 0.75},
    "dual": DUAL,
    "dual, pruned": {**DUAL, "prune_rate": 0.75},
}


# --------------------------------------------------------------------- tokens
def answers(llm: Any, batched: bool) -> dict[str, list[int]]:
    """Tokens of every case, each about a picture of its own."""
    from vllm import SamplingParams

    from examples.tiny import pictures, prompts

    requests, params = [], []
    for name, xargs in CASES.items():
        rng = random.Random(f"gpu check {name}")
        picture = pictures.draw(pictures.draw_scene(rng, "heldout"), rng).image
        prompt = prompts.prompt_text("Describe the picture.")
        requests.append({"prompt": prompt, "multi_modal_data": {"image": picture}})
        args = {**BLOCKS, **xargs}
        params.append(SamplingParams(temperature=0, max_tokens=None, extra_args=args))
    if batched:
        outputs = llm.generate(requests, params, use_tqdm=False)
    else:
        outputs = [
            llm.generate([request], [param], use_tqdm=False)[0]
            for request, param in zip(requests, params, strict=True)
        ]
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    return dict(zip(CASES, tokens, strict=True))


def tiny_engine(dtype: str, **options: Any) -> Any:
    most = 2 * len(CASES)
    options = engine_options(1024, most, dtype=dtype, seed=0, **options)
    return start_engine("lladav-tiny", **options)


def compare_tokens(dtype: str, **options: Any) -> dict[str, Any]:
    recorded = json.loads(RECORDED.read_text())
    llm = tiny_engine(dtype, **options)
    found: dict[str, Any] = {"dtype": str(llm.model_config.dtype), "of": len(CASES)}
    for name, batched in (("alone", False), ("in_a_batch", True)):
        tokens = answers(llm, batched)
        different = [case for case in CASES if tokens[case] != recorded[case]]
        found[name] = len(CASES) - len(different)
        found[f"different_{name}"] = different
    return found


# --------------------------------------------------------------------- waits
def find_waits() -> dict[str, Any]:
    """Where the host waits for the device: file and line, and how often in all steps
    of a few requests, by method. torch warns of each."""
    import torch

    llm = tiny_engine("auto")
    found = {}
    for name, xargs in {"exact": {"denoising": "exact"}, "dual": DUAL}.items():
        ask_without_images(llm, 4, 60, 32, block_length=16, **xargs)  # Warms up.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            run = ask_without_images(llm, 4, 60, 32, block_length=16, **xargs)
            torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{Path(warning.filename).name}:{warning.lineno}"
            for warning in caught
            if "synchronizing" in str(warning.message)
        )
        found[name] = {"steps": run.steps, "places": dict(places)}
    return {"waits": found}


# --------------------------------------------------------------------- speed
def write_released_shape(directory: Path) -> None:
    """Config and tokenizer of the released model's size; weights are made up."""
    from vllm_lladav.tiny.checkpoint import write_configuration
    from vllm_lladav.tiny.configs import model_config
    from vllm_lladav.tiny.presets import ModelSize

    size = ModelSize(
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=32,
        num_heads=32,
        vision_hidden_size=1152,
        vision_intermediate_size=4304,
        vision_num_layers=27,
        vision_num_heads=16,
    )
    config = model_config(size, "bfloat16")
    config["mm_vision_tower"] = "google/siglip2-so400m-patch14-384"
    write_configuration(directory, config)


def measure_speed(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Rows of figures. A short run warms up before each."""
    import torch

    from vllm_lladav.tiny import ensure_checkpoint

    if torch.cuda.is_available():
        write_released_shape(directory)
        model, options = str(directory), {"load_format": "dummy", "dtype": "bfloat16"}
        options["max_num_batched_tokens"] = 16384
    else:
        model, options = str(ensure_checkpoint("mid")), {}
    longest = args.gen_length + 2048
    llm = start_engine(model, **engine_options(longest, max(args.requests), **options))
    rows = []
    for number in args.requests:
        for name, xargs in SPEED.items():
            for warm_up in (True, False):
                images = [[image] for image in noise_images(args.image, number)]
                gen_length = 8 if warm_up else args.gen_length
                block = min(args.block_length, gen_length)
                run = ask(llm, images, gen_length, block_length=block, **xargs)
            rows.append(
                {
                    "case": name,
                    "requests": number,
                    "seconds": run.wall,
                    "steps": run.steps,
                    "ms_per_step": 1e3 * run.wall / run.steps,
                    "tokens_per_s": number * args.gen_length / run.wall,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"model": "8B shape" if options else "mid-size checkpoint", "rows": rows}


# --------------------------------------------------------------------- report
def page(report: Mapping[str, Any]) -> str:
    """The figures, in Markdown."""
    machine = report["machine"]
    card = ", ".join(machine["gpus"]) or f"no GPU ({machine['cpu']})"
    lines = [f"# GPU check: {card}", ""]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("vllm", "torch"))
    lines += [f"{versions}, commit {machine['commit']}.", ""]
    for stage, found in report["stages"].items():
        if "error" in found:
            lines += [f"**{stage} failed.** {found['error'].splitlines()[-1]}", ""]
        elif "of" in found:
            lines += [
                f"{stage} ({found['dtype']}): of {found['of']} answers, "
                f"{found['alone']} alone and {found['in_a_batch']} in a batch have the "
                "recorded tokens.",
                "",
            ]
        elif "waits" in found:
            for name, waits in found["waits"].items():
                places = [f"{place} ({n})" for place, n in waits["places"].items()]
                lines += [
                    f"{name}, {waits['steps']} steps; the host waits in "
                    f"{', '.join(places) or 'no line'}.",
                    "",
                ]
        else:
            lines += [
                f"{stage}, {found['model']}, random weights:",
                "",
                "| | requests | seconds | ms a step | tokens/s |",
                "| --- | --- | --- | --- | --- |",
                *(
                    f"| {row['case']} | {row['requests']} | {row['seconds']:.2f} | "
                    f"{row['ms_per_step']:.1f} | {row['tokens_per_s']:.1f} |"
                    for row in found["rows"]
                ),
                "",
            ]
    return "\n".join(lines)


def run_stage(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    if stage == "speed":
        with TemporaryDirectory() as directory:
            return measure_speed(args, Path(directory))
    if stage == "waits":
        return find_waits()
    if stage == "tokens-graphs":
        return compare_tokens("float32", **WHOLE_GRAPHS)
    return compare_tokens("float32" if stage == "tokens" else "auto")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--image", type=parse_size, default=(384, 384), metavar="WxH")
    parser.add_argument("--results", type=Path, default=Path("results/gpu-check"))
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    import torch

    if not torch.cuda.is_available():
        parser.set_defaults(stages=list(ON_CPUS), **WITHOUT_GPU)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # examples/
    # Products of float32 as exact as a CPU's.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    args.results.mkdir(parents=True, exist_ok=True)
    if args.record:
        RECORDED.write_text(json.dumps(answers(tiny_engine("float32"), False)) + "\n")
        return
    if args.stage:
        found = run_stage(args.stage, args)
        (args.results / f"{args.stage}.json").write_text(json.dumps(found))
        return
    stages = {}
    for stage in args.stages:
        output = args.results / f"{stage}.json"
        output.unlink(missing_ok=True)
        command = [sys.executable, *sys.argv, "--stage", stage]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        failed = done.returncode or not output.exists()
        stages[stage] = (
            {"error": done.stderr[-4000:].strip() or str(done.returncode)}
            if failed
            else json.loads(output.read_text())
        )
        report = with_environment(args, stages=stages)
        (args.results / "gpu-check.json").write_text(json.dumps(report, indent=2))
        (args.results / "gpu-check.md").write_text(page(report))
    print((args.results / "gpu-check.md").read_text())
    exact = [stages.get(stage, {}) for stage in ("tokens", "tokens-graphs")]
    differ = any(
        found.get(f"different_{how}")
        for found in exact
        for how in ("alone", "in_a_batch")
    )
    if differ or any("error" in found for found in stages.values()):
        raise SystemExit("the check failed")


if __name__ == "__main__":
    main()
