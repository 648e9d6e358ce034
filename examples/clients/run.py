# SPDX-License-Identifier: Apache-2.0
"""Try the clients of this folder against a server, and write docs/clients.md's table.

    python examples/clients/run.py                      # starts the server itself
    python examples/clients/run.py --url http://localhost:8000 --only llm.sh

A trial has worked if the client's script ends well, the server has finished all its
requests and refused none, and the answer is the right one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from clients import CLIENTS, Client
from environments import Environment
from table import read_results, write_results

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from server import serve  # noqa: E402

from vllm_lladav.tiny import TRAINED  # noqa: E402

MODEL = "lladav-tiny"
FLAGS = ("--plugin", "pruning", "--prune-layer", "6")
"""As in ``make serve``."""

PICTURE_HAS = "a green star at top center, a pink triangle at middle center"
STEPS = 16
"""At most, per request, in the trial ``xargs``. Without it the answer about the picture
takes 27."""

VARIABLES = {"MODEL": MODEL, "TOKENIZER": str(TRAINED)}
BAD = ("refused", "aborted", "failed")
TRIAL_SECONDS = 600


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(MODEL, FLAGS, Path(folder) / "server.log") as server,
    ):
        yield server.url


def _counts(url: str) -> Counter[str]:
    """Requests by outcome, denoising steps, and images."""
    counts: Counter[str] = Counter()
    for line in requests.get(f"{url}/metrics", timeout=30).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("lladav:requests_ended_total{"):
            outcome = name.partition('outcome="')[2].partition('"')[0]
            counts[outcome] += int(float(value))
        elif name.startswith(("lladav:denoising_steps_total", "lladav:images_total")):
            counts[name.partition("_total")[0]] += int(float(value))
    return counts


def _try(environment: Environment, trial: str, url: str) -> dict[str, Any]:
    """What came of one trial: its outcome, and what says so."""
    before = _counts(url)
    try:
        done = subprocess.run(
            environment.command(trial),
            env={**environment.variables, **VARIABLES, "BASE_URL": f"{url}/v1"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "no", "why": f"not done after {TRIAL_SECONDS} s"}
    counts = _counts(url) - before
    why = _complaint(done.stderr or done.stdout)
    if counts["refused"] and not counts["finished"]:
        return {"outcome": "refused", "why": why}
    bad = {name: counts[name] for name in BAD if counts[name]}
    if done.returncode or bad or not counts["finished"]:
        status = f"exit status {done.returncode}, {counts['finished']} finished, {bad}"
        return {"outcome": "no", "why": f"{status}: {why}"}
    wrong = _wrong(environment.client, trial, done.stdout, counts)
    return {"outcome": "no", "why": wrong} if wrong else {"outcome": "yes"}


def _complaint(said: str) -> str:
    """The last line about a refusal, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refusals = [line for line in lines if "400 " in line]
    return (refusals or lines or [""])[-1][:400]


def _wrong(client: Client, trial: str, output: str, counts: Counter[str]) -> str:
    """What is wrong with an answer; nothing if nothing is."""
    answer, in_one_piece = output.strip(), False
    if not client.script.endswith(".sh"):  # Of those nobody can tell the pieces.
        line = json.loads(answer)
        answer, in_one_piece = line["answer"], line["pieces"] < 2
    if not answer:
        return "no answer"
    if trial == "xargs":
        taken = counts["lladav:denoising_steps"] / counts["finished"]
        return f"{taken:g} steps" if taken > STEPS else ""
    if trial == "picture" and not counts["lladav:images"]:
        return "no picture reached the server"
    if client.shows_answers and trial != "text" and PICTURE_HAS not in answer:
        return f"another answer: {answer[-200:]}"
    return "all in one piece" if trial == "streaming" and in_one_piece else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="of a server with lladav-tiny, without a path")
    parser.add_argument(
        "--environments",
        type=Path,
        default=ROOT / "results" / "clients",
        help="where the clients are installed (default: results/clients)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="SCRIPT",
        help="these clients; others stay as found",
    )
    args = parser.parse_args()

    chosen = [
        client for client in CLIENTS if client.script in (args.only or [client.script])
    ]
    environments = [
        Environment(client, args.environments.resolve()) for client in chosen
    ]
    for environment in environments:
        environment.install()
    results = read_results()
    with _server(args.url) as url:
        for environment in environments:
            client = environment.client
            trials = {}
            for trial in client.trials:
                trials[trial] = _try(environment, trial, url)
                print(f"{client.title}, {trial}: {trials[trial]}", flush=True)
            results[client.script] = {"version": environment.version, "trials": trials}
            write_results(results)
    outcomes = [t["outcome"] for r in results.values() for t in r["trials"].values()]
    print(f"written to docs/clients.md: {dict(Counter(outcomes))}")
    return int("no" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
