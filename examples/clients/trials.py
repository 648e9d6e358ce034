# SPDX-License-Identifier: Apache-2.0
"""What the Python scripts of this folder share: the server, a picture, trials by name.

Nothing of it is needed to use a client.
"""

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

BASE_URL = os.environ.get("BASE_URL", "http://localhost:8000/v1")
MODEL = os.environ.get("MODEL", "lladav-tiny")

PICTURE = Path(__file__).parents[2] / "docs" / "picture.png"
PICTURE_URL = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"


def run(**trials: Callable[[], object]) -> None:
    """Run the trials that the command line names, or all; one line of JSON each.

    A trial returns its answer, one that streams the pieces of it.
    """
    for name in sys.argv[1:] or trials:
        answer = trials[name]()
        parts = answer if isinstance(answer, list) else [str(answer)]
        pieces = [piece for piece in parts if piece]
        line = {"trial": name, "answer": "".join(pieces), "pieces": len(pieces)}
        print(json.dumps(line), flush=True)
