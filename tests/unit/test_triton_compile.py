"""The Triton attention kernels compiled for real GPUs without one: registers spill no more than stated, and the
products run on the matrix units.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.triton_tools import triton_or_skip
from tools.kernel_triton import attention, attention_kernels

triton_or_skip()
KERNELS = attention_kernels()
delta_kernel = importlib.import_module("megatron_videogpt.attention.triton_backward_kernels").delta_kernel

HOPPER, AMPERE = (9, 0), (8, 6)
SHARED = {HOPPER: 227 * 1024, AMPERE: 99 * 1024}
SPILLS = {("atomic", 96, HOPPER): 128, ("key_value", 96, AMPERE): 64, ("atomic", 96, AMPERE): 64}
"""Budget in bytes a thread; 0 for all others."""
GROUPED_SPILLS = 64
"""Budget of `key_value` where query heads share a key-value head, at head dimension 96: pointers of the outer loop."""


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("name", KERNELS)
def test_hopper(name: str, head_dim: int) -> None:
    result = attention(name, head_dim, HOPPER)
    assert result.spilled <= SPILLS.get((name, head_dim, HOPPER), 0)
    assert result.shared <= SHARED[HOPPER]
    # Products on whole warp groups (but for the gradient of queries in `atomic` at 128, whose tiles have 32 rows), and
    # copies to shared memory that run ahead of them.
    assert "wgmma.mma_async" in result.ptx and "cp.async.cg.shared.global" in result.ptx


def test_hopper_with_shared_key_value_heads() -> None:
    assert attention("key_value", 96, HOPPER, group=4).spilled <= GROUPED_SPILLS


@pytest.mark.parametrize("name", KERNELS)
def test_consumer_gpu(name: str) -> None:
    result = attention(name, 96, AMPERE)
    assert result.spilled <= SPILLS.get((name, 96, AMPERE), 0)
    assert result.shared <= SHARED[AMPERE]
    assert "mma.sync" in result.ptx and "cp.async.cg.shared.global" in result.ptx


@pytest.mark.parametrize("kernel", [*KERNELS.values(), delta_kernel], ids=[*KERNELS, "delta"])
def test_a_new_row_length_does_not_recompile(kernel: Any) -> None:
    """Triton compiles anew when an integer becomes 1 or a multiple of 16, unless it is told not to; strides do not
    change with the length.
    """
    lengths = {param.name for param in kernel.params if param.name in ("rows", "keys", "width")}
    assert "rows" in lengths
    assert all(param.do_not_specialize for param in kernel.params if param.name in lengths)
