# SPDX-License-Identifier: Apache-2.0
"""Ask a running server about a picture.

python examples/ask.py photo.jpg "What is on the left?"
"""

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server about a picture.")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, help="default: one per token")
    args = parser.parse_args()

    client = OpenAI(base_url=args.url, api_key="none")
    kind = mimetypes.guess_type(args.image)[0] or "image/png"
    data = base64.b64encode(args.image.read_bytes()).decode()
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:{kind};base64,{data}"},
                    },
                    {"type": "text", "text": args.question},
                ],
            }
        ],
        max_tokens=args.max_tokens,
        stream=True,
        extra_body={"vllm_xargs": {"steps": args.steps}} if args.steps else None,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
