# SPDX-License-Identifier: Apache-2.0
"""What dLLM-Cache's generation half could gain over the caches that are there.

    python benchmarks/canvas_cache.py

Between two full canvas steps dLLM-Cache (arXiv 2506.06295) recomputes the value vectors
of the whole canvas in every layer, and attention and MLP only for the share of canvas
positions whose value vectors moved most. This times its best case, one decoder layer
in plain PyTorch without bookkeeping, against a layer of ``cache=prompt`` (the whole
canvas) and of ``cache=dual`` (a block of as many positions as the share), and adds the
LM head, which all three run over the same masks. The ratios are over whole cycles of
``gen_interval_steps``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from common import with_environment
from torch.nn import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A decoder, as far as it is timed."""

    hidden: int
    inner: int
    num_heads: int
    num_layers: int
    vocab: int


SHAPES = {
    "mid": Shape(512, 1536, 8, 8, 126_464),
    "8b": Shape(4096, 12_288, 32, 32, 126_464),
}


class Layer:
    """One decoder layer of random weights, and K/V of everything else.

    Args:
        num_requests: that run at once.
        gen_length: canvas positions of each.
        prompt_len: tokens of each prompt, whose K/V are cached.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        num_requests: int,
        gen_length: int,
        prompt_len: int,
    ) -> None:
        self.shape = shape
        self.num_requests = num_requests
        self.gen_length = gen_length

        def weight(outputs: int, inputs: int) -> torch.Tensor:
            return torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5

        h, inner = shape.hidden, shape.inner
        self.qkv, self.out = weight(3 * h, h), weight(h, h)
        self.gate_up, self.down = weight(2 * inner, h), weight(h, inner)
        self.norm = torch.ones(h, dtype=dtype)
        heads, head_dim = shape.num_heads, h // shape.num_heads
        kv = (num_requests, heads, prompt_len + gen_length, head_dim)
        self.keys, self.values = torch.randn(2, *kv).to(dtype)
        self.old_values = torch.randn(num_requests, gen_length, h).to(dtype)
        self.old_attention = torch.randn(num_requests, gen_length, h).to(dtype)
        self.old_mlp = torch.randn(num_requests, gen_length, h).to(dtype)

    def hidden_states(self, num_rows: int) -> torch.Tensor:
        size = (self.num_requests, num_rows, self.shape.hidden)
        return torch.randn(size).to(self.qkv.dtype)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.shape.hidden,), self.norm)

    def _attend(self, query: torch.Tensor) -> torch.Tensor:
        split = query.unflatten(-1, (self.shape.num_heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(split, self.keys, self.values)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.out)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = functional.linear(self._norm(x), self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Every row that is given, ``[requests, n, hidden]``."""
        query, _, _ = functional.linear(self._norm(x), self.qkv).chunk(3, dim=-1)
        x = x + self._attend(query)
        return x + self._mlp(x)

    def changed(self, x: torch.Tensor, num_changed: int) -> torch.Tensor:
        """Of the canvas, ``[requests, gen_length, hidden]``, only the rows whose
        value vectors moved most."""
        h = self.shape.hidden
        normed = self._norm(x)
        values = functional.linear(normed, self.qkv[2 * h :])
        similarity = functional.cosine_similarity(values, self.old_values, dim=-1)
        rows = similarity.topk(num_changed, largest=False).indices
        index = rows[..., None].expand(-1, -1, h)
        query_key = functional.linear(normed.gather(1, index), self.qkv[: 2 * h])
        mixed = self._attend(query_key[..., :h])
        attention = self.old_attention.scatter_(1, index, mixed)
        x = x + attention
        mlp = self.old_mlp.scatter_(1, index, self._mlp(x.gather(1, index)))
        return x + mlp


def seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.inference_mode()
def measure(args: argparse.Namespace, shape: Shape, num_requests: int) -> dict:
    """Milliseconds of a step in which nothing is refreshed, and of a mean one."""
    dtype = DTYPES[args.dtype]
    layer = Layer(shape, dtype, num_requests, args.gen_length, args.prompt_len)
    num_changed = int(args.gen_length * args.transfer_ratio)
    canvas = layer.hidden_states(args.gen_length)
    block = layer.hidden_states(num_changed)
    head = torch.randn(shape.vocab, shape.hidden).to(dtype)
    masks = torch.randn(num_requests * num_changed, shape.hidden).to(dtype)
    times = {
        "prompt": seconds(partial(layer.whole, canvas), args.repeats),
        "changed": seconds(partial(layer.changed, canvas, num_changed), args.repeats),
        "dual": seconds(partial(layer.whole, block), args.repeats),
    }
    head_ms = 1e3 * seconds(partial(functional.linear, masks, head), args.repeats)
    steps = {n: 1e3 * t * shape.num_layers + head_ms for n, t in times.items()}
    # One step of an interval computes the whole canvas.
    interval = args.gen_interval_steps
    cycles = {
        name: (steps["prompt"] + (interval - 1) * step) / interval
        for name, step in steps.items()
    }
    return {
        "requests": num_requests,
        "layer_ms": {name: 1e3 * t for name, t in times.items()},
        "head_ms": head_ms,
        "mean_step_ms": cycles,
        "gain_over_prompt": cycles["prompt"] / cycles["changed"],
        "gain_of_dual_over_prompt": cycles["prompt"] / cycles["dual"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="mid")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--prompt-len", type=int, default=1549)
    parser.add_argument("--gen-interval-steps", type=int, default=7)
    parser.add_argument("--transfer-ratio", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(with_environment(args)))
    for num_requests in args.requests:
        print(json.dumps(measure(args, SHAPES[args.shape], num_requests)))


if __name__ == "__main__":
    main()
