"""The Triton attention kernels compiled for real GPUs without one: registers spill no more than stated, and the
products run on the matrix units.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tests.triton_tools import Compiled, compiled

# Imported when triton is known to be there: `triton_tools` skips this file where it is not.
backend, triton_kernels, triton_backward_kernels = (
    importlib.import_module(f"megatron_videogpt.attention.{name}")
    for name in ("triton_attention", "triton_kernels", "triton_backward_kernels")
)

KERNELS = {
    "forward": triton_kernels.forward_kernel,
    "key_value": triton_backward_kernels.key_value_kernel,
    "atomic": triton_backward_kernels.key_value_kernel,
    "query": triton_backward_kernels.query_kernel,
}
INT_TENSORS = {"intervals", "order", "counts", "lists"}
FLOAT_TENSORS = {"lse", "delta"}

HOPPER, AMPERE = (9, 0), (8, 6)
SHARED = {HOPPER: 227 * 1024, AMPERE: 99 * 1024}
SPILLS = {("atomic", 96, HOPPER): 128, ("key_value", 96, AMPERE): 64, ("atomic", 96, AMPERE): 64}
"""Budget in bytes a thread; 0 for all others."""
GROUPED_SPILLS = 64
"""Budget of `key_value` where query heads share a key-value head, at head dimension 96: pointers of the outer loop."""


def compile_as_used(name: str, head_dim: int, capability: tuple[int, int], group: int = 1) -> Compiled:
    """A kernel as the backend launches it on bf16 tensors whose strides are multiples of 16."""
    kernel: Any = KERNELS[name]
    launch = getattr(backend.default_launches(head_dim, torch.bfloat16, capability), name)
    first, second = backend.HEAD_DIMS[head_dim]
    every = {
        "GROUP": group,
        "ROW_TILE": launch.rows,
        "KEY_TILE": launch.keys,
        "FIRST": first,
        "SECOND": second,
        "ATOMIC": name == "atomic",
    }
    constexprs = {key: value for key, value in every.items() if key in kernel.arg_names}
    strides = [arg for arg in kernel.arg_names if arg.startswith("stride")]
    types = (
        {arg: "*bf16" for arg in kernel.arg_names}
        | {arg: "i32" for arg in ["rows", "keys", "width", *strides]}
        | {"scale": "fp32"}
    )
    types |= {arg: "*i32" for arg in INT_TENSORS} | {
        arg: "*fp32" for arg in FLOAT_TENSORS | ({"grad_q"} if name == "atomic" else set())
    }
    return compiled(kernel, types, constexprs, launch.warps, launch.stages, strides, capability[0] * 10 + capability[1])


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("name", KERNELS)
def test_hopper(name: str, head_dim: int) -> None:
    result = compile_as_used(name, head_dim, HOPPER)
    assert result.spilled <= SPILLS.get((name, head_dim, HOPPER), 0)
    assert result.shared <= SHARED[HOPPER]
    # Products on whole warp groups, and copies to shared memory that run ahead of them.
    assert "wgmma.mma_async" in result.ptx and "cp.async.cg.shared.global" in result.ptx


def test_hopper_with_shared_key_value_heads() -> None:
    assert compile_as_used("key_value", 96, HOPPER, group=4).spilled <= GROUPED_SPILLS


@pytest.mark.parametrize("name", KERNELS)
def test_consumer_gpu(name: str) -> None:
    result = compile_as_used(name, 96, AMPERE)
    assert result.spilled <= SPILLS.get((name, 96, AMPERE), 0)
    assert result.shared <= SHARED[AMPERE]
    assert "mma.sync" in result.ptx and "cp.async.cg.shared.global" in result.ptx


@pytest.mark.parametrize("kernel", [*KERNELS.values(), triton_backward_kernels.delta_kernel], ids=[*KERNELS, "delta"])
def test_a_new_row_length_does_not_recompile(kernel: Any) -> None:
    """Triton compiles anew when an integer becomes 1 or a multiple of 16, unless it is told not to; strides do not
    change with the length.
    """
    lengths = {param.name for param in kernel.params if param.name in ("rows", "keys", "width")}
    assert "rows" in lengths
    assert all(param.do_not_specialize for param in kernel.params if param.name in lengths)
