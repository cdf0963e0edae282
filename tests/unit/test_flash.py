"""The flash backend without a GPU: tile lists and the mask's arithmetic against the dense mask, the arguments that the
package gets, what cannot run; and, where the package is installed, its kernels compiled for Hopper.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.attention import attend, flash
from megatron_videogpt.sequence.intervals import dense_mask
from tests.cached import cached
from tests.random_layouts import random_case

H100 = (9, 0)
CASES = ("64:4:4:float16", "96:4:4:bfloat16", "96:4:2:bfloat16", "128:4:2:bfloat16")


def expanded(lists: dict[str, Any], table: torch.Tensor, keys: int, rows_first: bool) -> torch.Tensor:
    """The dense mask that the kernels would use, bool ``[tiles x rows, tiles x keys]``: full tiles, and `sees` in
    partial ones.

    rows_first: whether the lists are the forward's (for tiles of rows) or the backward's (for tiles of keys).
    """
    row_tile, key_tile = lists["block_size"]
    shape = (-(-len(table) // row_tile) * row_tile, -(-keys // key_tile) * key_tile)
    mask, seen = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int32)
    for kind in ("mask", "full"):
        counts, numbers = lists[f"{kind}_block_cnt"], lists[f"{kind}_block_idx"]
        assert (
            counts.dtype == numbers.dtype == torch.int32
            and numbers.is_contiguous()
            and counts.shape == numbers.shape[:3]
        )
        assert numbers.shape[:2] == (1, 1)
        for number, (count, others) in enumerate(zip(counts[0, 0].tolist(), numbers[0, 0].tolist())):
            assert others[:count] == sorted(set(others[:count])), (
                "the kernels mask keys beyond the end in the last tile of a list"
            )
            for other in others[:count]:
                r, c = (number, other) if rows_first else (other, number)
                tile = slice(r * row_tile, (r + 1) * row_tile), slice(c * key_tile, (c + 1) * key_tile)
                bounds = (x.unsqueeze(1) for x in table[tile[0]].unbind(1))
                mask[tile] = True if kind == "full" else flash.sees(torch.arange(keys + key_tile)[tile[1]], *bounds)
                seen[tile] += 1
    assert seen.max() <= 1, "no tile is in both lists"
    return mask


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([((6, 4), (4, 4)), ((8, 16), (4, 16)), ((192, 128), (64, 128)), ((192, 128), (128, 128))]),
)
def test_lists_and_arithmetic_stand_for_the_dense_mask(
    seed: int, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    case = random_case(seed, budget=900 if sizes[0][0] > 100 else 120)
    intervals, keys = case.intervals[case.kept], len(case.intervals)
    mask = flash.mask(intervals, keys, *sizes)
    dense = dense_mask(intervals, keys)
    assert len(mask.table) % sizes[0][0] == len(mask.table) % sizes[1][0] == 0
    assert torch.equal(mask.table[: len(intervals)], intervals) and not mask.table[len(intervals) :].any()
    for lists, rows_first, size in ((mask.forward, True, sizes[0]), (mask.backward, False, sizes[1])):
        whole = expanded(lists, mask.table, keys, rows_first)
        assert lists["block_size"] == size and torch.equal(whole[: len(intervals), :keys], dense)
        assert not whole[:, keys:].any(), "nobody attends keys beyond the end"


def test_table_is_a_copy_that_vector_loads_can_read() -> None:
    intervals = torch.arange(400 * 5, dtype=torch.int32).view(400, 5)[8:392, :4]
    table = flash.mask(intervals, 4000, (192, 128), (64, 128)).table
    assert table.is_contiguous() and table.data_ptr() % 16 == 0 and torch.equal(table, intervals)
    assert table.untyped_storage()._cdata != intervals.untyped_storage()._cdata


class Lists(NamedTuple):
    """Stands for the package's `BlockSparseTensorsTorch`."""

    mask_block_cnt: torch.Tensor
    mask_block_idx: torch.Tensor
    full_block_cnt: torch.Tensor
    full_block_idx: torch.Tensor
    block_size: tuple[int, int]


def emulated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_func` from its documentation: batch first, heads of keys repeated, the mask from the lists and the
    table.  Rows that see nothing give 0.
    """
    assert given["mask_mod"] is flash.mask_mod() and given["return_lse"] and given["pack_gqa"] is False
    (table,) = given["aux_tensors"]
    rows, keys = q.shape[1], k.shape[1]
    masks = [
        expanded(given[name]._asdict(), table, keys, rows_first)[:rows, :keys]
        for name, rows_first in (("block_sparse_tensors", True), ("block_sparse_tensors_bwd", False))
    ]
    assert torch.equal(*masks)
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * given["softmax_scale"]
    scores = scores.masked_fill(~masks[0], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(), v), scores.logsumexp(-1)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A package flash_attn.cute that computes with torch; gives the lengths it was called with."""
    calls: list[int] = []

    def counted(q: torch.Tensor, *rest: Any, **given: Any) -> Any:
        calls.append(q.shape[1])
        return emulated(q, *rest, **given)

    interface = ModuleType("flash_attn.cute.interface")
    interface.__dict__.update(flash_attn_func=counted, _get_device_arch=lambda: 90)
    sparsity = ModuleType("flash_attn.cute.block_sparsity")
    sparsity.__dict__["BlockSparseTensorsTorch"] = Lists
    for module in (ModuleType("flash_attn"), ModuleType("flash_attn.cute"), interface, sparsity):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    stand_in = SimpleNamespace()
    monkeypatch.setattr(flash, "mask_mod", lambda: stand_in)
    yield calls


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_the_package_gets_what_gives_the_result_of_reference(package: list[int], seed: int, head_dim: int) -> None:
    case = random_case(seed, budget=700)
    intervals = case.intervals[case.kept]
    inputs = case.tensors(head_dim, torch.float64)
    results = []
    for backend in ("flash", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs[:3]]
        out = attend(backend, *leaves, intervals, 0.2, deterministic=False)
        results.append([out, *torch.autograd.grad(out, leaves, inputs[3])])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert package == [len(intervals)], "called once, without padding"


def test_layers_share_the_lists(package: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    case, built = random_case(3), []
    build = flash.mask
    monkeypatch.setattr(flash, "mask", lambda *arguments: built.append(1) or build(*arguments))
    q, k, v, _ = case.tensors(96, torch.float64)
    intervals = case.intervals[case.kept]
    first, second = (
        attend("flash", q, k, v, table, 0.2, deterministic=False) for table in (intervals, intervals.detach())
    )
    assert torch.equal(first, second) and len(built) == 1


def test_gradients_in_a_fixed_order_are_refused() -> None:
    q, k, v, _ = random_case(0).tensors(64, torch.bfloat16)
    with pytest.raises(ValueError, match="deterministic=true.*attention.deterministic=false"):
        attend("flash", q, k, v, random_case(0).intervals, 1.0, deterministic=True)


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    half, before = torch.bfloat16, set(sys.modules)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "pip install" in flash.obstacle(H100, half, 96)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0b9")
    assert "4.0.0b9, but at least 4.0.0b33" in flash.obstacle(H100, half, 96)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0b36")
    assert all(
        flash.obstacle(capability, dtype, dim) == ""
        for capability in (H100, (10, 3))
        for dtype in (half, torch.float16)
        for dim in (64, 96, 128)
    )
    assert "8.0" in flash.obstacle((8, 0), half, 96) and "12.0" in flash.obstacle((12, 0), half, 96)
    assert "float32" in flash.obstacle(H100, torch.float32, 96)
    assert all(f"it is {dim}" in flash.obstacle(H100, half, dim) for dim in (4, 100, 136))
    assert "attention.deterministic=false" in flash.obstacle(H100, half, 96, deterministic=True)
    assert not any(name.split(".")[0] in ("cutlass", "flash_attn") for name in set(sys.modules) - before), (
        "asking must not import the package"
    )


@pytest.fixture(scope="module")
def hopper() -> dict[str, dict[str, Any]]:
    """What compiling each of `CASES` for sm_90a gave."""
    try:
        importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package flash-attn-4 (extra `flash`) is not installed, so its kernels cannot be compiled")
    root = Path(__file__).parents[2]

    def compile_all() -> dict[str, dict[str, Any]]:
        command = [sys.executable, "-W", "ignore", "tools/kernel_flash.py", *CASES]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}

    versions = {f"{one.name}=={one.version}" for one in importlib.metadata.distributions()}
    tools = [root / "tools" / name for name in ("kernel_flash.py", "kernel_reading.py")]
    sources = [*tools, *sorted((root / "megatron_videogpt" / "attention").glob("*.py"))]
    return cached("flash", [*CASES, sys.version, *sorted(versions)], sources, compile_all)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_for_hopper_without_a_gpu(hopper: dict[str, dict[str, Any]], case: str) -> None:
    found = hopper[case]
    # Forward, sums before the backward, backward, and one or two that round its sums.
    assert found["kernels"] >= 3
    assert found["again"] == 0, "other lengths must not compile again"
    # Bytes a thread that do not fit registers, all but a few of them in partial tiles: the forward has 128 registers
    # for 192 rows.
    assert found["forward"]["stack"] <= 320 and found["backward"]["stack"] <= 64
    # One load of intervals for each row of a thread, in the forward's first and later tiles, in the backward's two
    # kinds of threads.
    assert found["forward"]["loads"] <= 4 and found["backward"]["loads"] <= 32
