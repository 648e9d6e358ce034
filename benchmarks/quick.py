# SPDX-License-Identifier: Apache-2.0
"""The quick subset of the benchmarks, one after the other (``make bench``).

    python benchmarks/quick.py --results results/bench

A part that fails does not keep the others from running; the exit status says so.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def parts(results: Path) -> dict[str, list[str]]:
    """Scripts and their arguments."""
    step = ["--model", "mid", "--image", "384x384", "--requests", "1", "8"]
    step += ["--gen-length", "16", "--repeats", "1"]
    step += ["--xargs", '{"cache": "dual", "refresh_interval": 100}']
    return {
        "against_plain.py": [
            *("--quick", "--output", str(results / "against_plain.json")),
        ],
        "step_overhead.py": [
            *(*step, "--output", str(results / "step_overhead.json")),
        ],
        "data_parallel.py": [
            *("--quick", "--modes", "exact"),
            *("--output", str(results / "data_parallel.json")),
        ],
        "serve_load.py": [
            *("--quick", "--pictures", "drawn", "--results", str(results)),
        ],
        "report.py": [str(results)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    results = args.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    for script, arguments in parts(results).items():
        print(f"== {script} {' '.join(arguments)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(HERE / script), *arguments])
        print(f"== {script}: {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            failed.append(script)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
