# SPDX-License-Identifier: Apache-2.0
"""Compiles the project's kernels for a Hopper GPU, which need not be there.

    python -m tests.interpreter.hopper tests.interpreter.compile_kernels

Prints the size of each.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_lladav.kernels import greedy, sampled

HOPPER = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel: Any, num_warps: int = 4, **types: str | int) -> None:
    """``types`` are those of the arguments, as Triton spells them; numbers are
    constants."""
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
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": num_warps})
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
                num_warps=sampled.WARPS,
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


if __name__ == "__main__":
    main()
