# SPDX-License-Identifier: Apache-2.0
"""An environment for every client, so that none decides what another one gets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

if __package__:
    from examples.clients.clients import Client
else:
    from clients import Client

HERE = Path(__file__).parent


class Environment:
    """What a client is installed into, with pip or npm, and found again later."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        kind = "node" if client.with_node else "python"
        self.root = folder / f"{client.package}-{kind}"

    def install(self) -> None:
        """Do nothing where it is there.

        Raises:
            subprocess.CalledProcessError: from pip or npm, or if there is none.
        """
        if self._version() is not None:
            return
        print(f"==> Installing {', '.join(self.client.requirements)}", flush=True)
        self.root.mkdir(parents=True, exist_ok=True)
        if self.client.with_node:
            npm = ["npm", "install", "--silent", "--no-fund"]
            self._run(*npm, "--prefix", self.root, *self.client.requirements)
            return
        self._run(sys.executable, "-m", "venv", self.root)
        pip = [self.root / "bin" / "python", "-m", "pip", "install", "-qq"]
        self._run(*pip, *self.client.requirements)

    @property
    def version(self) -> str:
        """Of the client, as it is installed."""
        version = self._version()
        assert version is not None
        return version

    def command(self, trial: str) -> list[str]:
        """Runs one trial of the client's script."""
        script = HERE / self.client.script
        if self.client.with_node:
            # Node looks for packages next to the script.
            script = Path(shutil.copy(script, self.root))
        program = {".py": "python", ".sh": "sh", ".mjs": "node"}[script.suffix]
        return [program, str(script), trial]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables in which the client's commands are found, and nothing
        of this project."""
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        ours = ("PYTHONPATH", "VIRTUAL_ENV")
        rest = {name: v for name, v in os.environ.items() if name not in ours}
        return {**rest, "PATH": path}

    def _version(self) -> str | None:
        package = self.client.package
        if self.client.with_node:
            file = self.root / "node_modules" / package / "package.json"
            return (
                str(json.loads(file.read_text())["version"]) if file.exists() else None
            )
        python = self.root / "bin" / "python"
        if not python.exists():
            return None
        code = f"from importlib.metadata import version; print(version({package!r}))"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else None

    @staticmethod
    def _run(*command: str | Path) -> None:
        subprocess.run(command, check=True)
