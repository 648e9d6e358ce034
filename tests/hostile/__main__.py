# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.hostile``: hostile requests to a server that it starts."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import requests

from tests.hostile.grammar import Grammar
from tests.hostile.report import write_report
from tests.hostile.sending import Run
from tests.server.process import running_server
from vllm_lladav.tiny.checkpoint import write_checkpoint

RESULTS = Path("results/fuzz")


def main() -> int:
    """Run; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description=__doc__
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="send this request again, and show it")
    parser.add_argument("--url", help="of a server that runs; --pid is needed, too")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args, flags = parser.parse_known_args()
    if args.url:
        return _send(args, args.url, args.pid)
    args.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "lladav-random"
        write_checkpoint(checkpoint)
        log = args.results / "server.log"
        with running_server(checkpoint, log, *flags) as server:
            return _send(args, server.url, server.pid)


def _send(args: argparse.Namespace, url: str, pid: int) -> int:
    openapi = requests.get(f"{url}/openapi.json", timeout=10).json()
    grammar = Grammar(openapi, args.seed)
    if args.only is not None:
        request = grammar.request(args.only)
        print(request)
        response = requests.request(
            request.method,
            url + request.path,
            data=request.body,
            headers=request.headers,
            timeout=60,
        )
        print(response.status_code, response.text[:2000])
        return 0
    seen = asyncio.run(Run(url, pid, grammar).run(list(range(args.requests))))
    command = f"python -m tests.hostile --seed {args.seed} --only {{}}"
    page = write_report(args.results, seen, grammar, command)
    print(page.read_text().partition("## Faults")[0])
    print(f"{len(seen.faults)} faults: {page}")
    return 1 if seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())
