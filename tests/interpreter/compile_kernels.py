# SPDX-License-Identifier: Apache-2.0
"""Compiles the project's kernels for a Hopper GPU, which need not be there.

    python -m tests.interpreter.hopper tests.interpreter.compile_kernels

Prints the size of each.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_lladav.kernels import greedy, received, sampled

HOPPER = GPUTarget("cuda", 90, 32)


def compile_kernel(
    kernel: Any, launch: dict[str, int] | None = None, **types: str | int
) -> None:
    """``types`` are those of the arguments, as Triton spells them; numbers are
    constants. ``launch``: ``num_warps`` and ``num_stages``."""
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={
            name: "constexpr" if isinstance(types[name], int) else types[name]
            for name in names
        },
        constexprs={
            (names.index(name),): value
            for name, value in types.items()
            if isinstance(value, int)
        },
    )
    compiled = triton.compile(source, target=HOPPER, options=launch)
    assert len(compiled.asm["cubin"]) > 0
    print(kernel.__name__, types, len(compiled.asm["cubin"]), "bytes")


def main() -> None:
    for logits in ("*bf16", "*fp16", "*fp32"):
        compile_kernel(
            greedy._greedy_choice_kernel,
            logits_ptr=logits,
            stride="i32",
            vocab="i32",
            tokens_ptr="*i64",
            probabilities_ptr="*fp64",
            BLOCK=greedy.BLOCK,
        )
        for restricts in (False, True):
            compile_kernel(
                sampled._sampled_choice_kernel,
                {"num_warps": sampled.WARPS},
                logits_ptr=logits,
                logits_stride="i32",
                allowed_ptr="*fp32" if restricts else logits,
                allowed_stride="i32",
                vocab="i32",
                temperature_ptr="*fp64",
                keys_ptr="*i64",
                tokens_ptr="*i64",
                probabilities_ptr="*fp64",
                RESTRICTS=restricts,
                BLOCK=sampled.BLOCK,
            )
    for heads in ("*bf16", "*fp16", "*fp32"):
        compile_received(heads)


def compile_received(heads: str) -> None:
    """With the official head size. ``heads``: the type of queries and keys."""
    is_wide = heads == "*fp32"
    tiles = received.FLOAT32_TILES if is_wide else received.NARROW_TILES
    launch = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    common = {
        "query_ptr": heads,
        "query_stride": "i32",
        "query_head_stride": "i32",
        "key_ptr": heads,
        "key_stride": "i32",
        "key_head_stride": "i32",
        "scale": "fp32",
        "num_rows": "i32",
        "sums_ptr": "*fp32",
        "GROUP": 1,
        "HEAD_DIM": 128,
        "WIDTH": 128,
        "OWN": tiles.own,
        "PASSING": tiles.passing,
    }
    compile_kernel(received._row_sums_kernel, launch, **common, num_keys="i32")
    compile_kernel(
        received._column_sums_kernel,
        launch,
        **common,
        columns_ptr="*i64",
        num_columns="i32",
        received_ptr="*fp32",
    )


if __name__ == "__main__":
    main()
