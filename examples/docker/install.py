# SPDX-License-Identifier: Apache-2.0
"""Create the environment of the CPU image: vLLM's CPU build and this project.

    python examples/docker/install.py DIRECTORY

As ``make setup``, less what only a developer needs.
"""

import shutil
import sys
from pathlib import Path

NOT_NEEDED = ("triton", "wheel", "pip")
"""Where the server runs. Triton, a GB, comes with the structured output that is refused
here, and vLLM turns it off without a GPU."""

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from setup_env import (  # noqa: E402
    LOCKED,
    NETWORK_HINT,
    SetupError,
    Venv,
    install_cpu_vllm,
)


def main(root: Path) -> int:
    venv = Venv(root, LOCKED / "cpu.txt")
    try:
        venv.create()
        install_cpu_vllm(venv)
        venv.pip_install("Installing this project", ROOT, hint=NETWORK_HINT)
        venv.pip(
            "Checking that all requirements agree (pip check)",
            "check",
            hint="One of the packages asks for another version.",
        )
        venv.pip(
            f"Removing {', '.join(NOT_NEEDED)}",
            *("uninstall", "-qq", "--yes", *NOT_NEEDED),
            hint="They were installed a moment ago.",
        )
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    # The repacked wheel, half a GB; it is installed.
    shutil.rmtree(root / "wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
