# SPDX-License-Identifier: Apache-2.0
"""The command ``vllm-lladav`` and its subcommands."""

import argparse
import sys
from collections.abc import Sequence

from vllm_lladav import __version__
from vllm_lladav.tools.capacity import cli as capacity_cli
from vllm_lladav.tools.eval import cli as eval_cli
from vllm_lladav.tools.inspect import cli as inspect_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: arguments without the command's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="vllm-lladav", description="Tools around LLaDA-V in vLLM."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for cli in (inspect_cli, eval_cli, capacity_cli):
        cli.add_parser(subparsers)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
