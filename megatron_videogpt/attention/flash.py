"""Attention with FlashAttention-4 (package flash-attn-4, CuTe kernels) for Hopper and Blackwell: tiles that attend
nothing are skipped, and only tiles that attend in part ask the mask.

What the package does, read in the source of 4.0.0b36, and what follows from it here:

- Row and key numbers in `mask_mod` are those of the whole tensors.  In the forward, rows of a ragged last tile ask as
  well, so that the table of intervals is padded; the backward takes row numbers modulo the number of rows.
- Keys beyond the end are masked in the first tile that a list's walk meets, which is the last of the list: lists must
  ascend.  Rows beyond the end get a log-sum-exp of +inf in the backward, hence no gradient, and are not stored.  So q,
  k and v of any length need no padding and no copy.
- Partial tiles come first, full tiles follow and skip `mask_mod`.  A row that sees nothing of a tile, or nothing at
  all, gets zeros and not NaN.
- The backward adds to the gradient of q (of k and v too, where heads share them) in the order in which tiles finish:
  not deterministic.  On Hopper the package refuses to be so with tile lists.
- Kernels are compiled for a head dimension, a dtype and a ratio of heads, not for lengths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

from ..errors import UserError
from .tiles import TileLists, memoised, tile_lists

OLDEST = "4.0.0b33"
"""Older releases refuse tile lists with 192 rows for heads of 65 to 96 numbers; before 4.0.0b26 the backward on Hopper
read sums that were not written yet.
"""

_UNORDERED = "its backward adds up gradients in no fixed order: set attention.deterministic=false to use it"


def obstacle(capability: tuple[int, int], dtype: torch.dtype, head_dim: int, deterministic: bool = False) -> str:
    """Why FlashAttention-4 cannot train here, or an empty string; imports nothing of it.

    capability: CUDA compute capability.  deterministic: gradients must be the same bits in every run.
    """
    try:
        version = importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return "the package flash-attn-4 is not installed (pip install 'megatron_videogpt[flash]')"
    if Version(version) < Version(OLDEST):
        return f"flash-attn-4 is {version}, but at least {OLDEST} is needed (pip install 'megatron_videogpt[flash]')"
    if capability[0] not in (9, 10, 11):
        return (
            "its backward runs on compute capability 9.x, 10.x and 11.x (Hopper, Blackwell), and this is "
            f"{capability[0]}.{capability[1]}"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels take bfloat16 and float16, not {dtype}"
    if head_dim % 8 or not 8 <= head_dim <= 128:
        return f"its kernels take head dimensions that are multiples of 8 up to 128, and it is {head_dim}"
    return _UNORDERED if deterministic else ""


class Mask(NamedTuple):
    """Intervals as the kernels take them.

    table: int32 ``[rows, 4]``, the intervals and empty ones up to the end of the last tile.  forward: for tiles of rows
    their tiles of keys, backward: for tiles of keys their tiles of rows; both with the field names of the package's
    `BlockSparseTensorsTorch`, counts ``[1, 1, R]`` and numbers ``[1, 1, R, C]`` for all heads.
    """

    table: Tensor
    forward: dict[str, Any]
    backward: dict[str, Any]


def tile_sizes(arch: int, head_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((rows, keys) of the forward kernel's tiles, (rows, keys) of the backward's) on an architecture such as 90.

    These are the kernels' own (`_tile_size_fwd_sm90`, `_tile_size_bwd_sm90`; on Blackwell two tiles of 128 rows at a
    time): lists of larger tiles are allowed and walk more tiles in vain, 7% of the pairs in place of 4% with 384 rows
    in place of 192, at 80 frames of 242 tokens.
    """
    if arch // 10 != 9:
        return (256, 128), (128, 128)
    return (192 if head_dim <= 96 else 128, 128), (128 if head_dim <= 64 else 64, 128)


def _named(lists: TileLists, size: tuple[int, int]) -> dict[str, Any]:
    names = ("mask_block_cnt", "mask_block_idx", "full_block_cnt", "full_block_idx")
    return {**dict(zip(names, (x[None, None] for x in lists))), "block_size": size}


def mask(intervals: Tensor, keys: int, forward_tile: tuple[int, int], backward_tile: tuple[int, int]) -> Mask:
    """The kernels' form of int32 intervals ``[rows, 4]`` over `keys` keys, built on their device without waiting for
    it.
    """
    by_row, _ = tile_lists(intervals, *forward_tile, keys)
    _, by_key = tile_lists(intervals, *backward_tile, keys)
    missing = -intervals.shape[0] % math.lcm(forward_tile[0], backward_tile[0])
    return Mask(
        F.pad(intervals, (0, 0, 0, missing)).contiguous(), _named(by_row, forward_tile), _named(by_key, backward_tile)
    )


def sees(key: Any, a0: Any, a1: Any, b0: Any, b1: Any) -> Any:
    """Whether a row with these intervals attends `key`; on torch tensors as on CuTe's values."""
    return ((key >= a0) & (key < a1)) | ((key >= b0) & (key < b1))


@lru_cache(maxsize=1)
def mask_mod() -> Any:
    """`sees` as CuTe compiles it into the kernels; one object, because compiled kernels are looked up by it."""
    import cutlass.cute as cute
    from cutlass import Int32
    from cutlass._mlir.dialects import llvm
    from cutlass.cutlass_dsl import T, dsl_user_op
    from flash_attn.cute.utils import scalar_to_ssa

    # Kernels ask for every pair.  Plain loads stay in the branch of each pair (LLVM moves them there), four of them;
    # assembly without side effects is merged into one load a row.  The table is 16-byte aligned and nobody writes to
    # it.
    @dsl_user_op
    def bounds(row: Any, *, loc: Any = None, ip: Any = None) -> list[Any]:
        four = llvm.StructType.get_literal([T.i32()] * 4)
        assembly, operands = "ld.global.nc.v4.b32 {$0,$1,$2,$3}, [$4];", [row.toint(loc=loc, ip=ip).ir_value()]
        loaded = llvm.inline_asm(
            four,
            operands,
            assembly,
            "=r,=r,=r,=r,l",
            has_side_effects=False,
            asm_dialect=llvm.AsmDialect.AD_ATT,
            loc=loc,
            ip=ip,
        )
        return [Int32(llvm.extractvalue(T.i32(), loaded, [n], loc=loc, ip=ip)) for n in range(4)]

    @cute.jit
    def interval_mask(batch, head, row, key, lengths, tables):
        return sees(key, *(scalar_to_ssa(bound, Int32) for bound in bounds(tables[0].iterator + row[0] * 4)))

    # The package would hash the source of `interval_mask` alone, and its cache on disk would keep kernels with an older
    # `sees`.
    interval_mask.__cute_hash__ = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return interval_mask


def attend(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = False) -> Tensor:
    """Interval attention; shapes as in `attention.attend`.  Raises ValueError where the same bits in every run are
    asked for.
    """
    if deterministic:
        raise UserError(f"attention backend flash with deterministic=true, but {_UNORDERED}")
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _get_device_arch, flash_attn_func

    sizes = tile_sizes(_get_device_arch(), q.shape[-1])
    table, forward, backward = memoised(
        intervals, ("flash", k.shape[0], sizes), lambda: mask(intervals, k.shape[0], *sizes)
    )
    out, _ = flash_attn_func(
        *(x.unsqueeze(0) for x in (q, k, v)),
        softmax_scale=scale,
        # Packing the heads of a group into a tile saves loads of keys for a few rows only, and takes more arithmetic in
        # masks.
        pack_gqa=False,
        mask_mod=mask_mod(),
        aux_tensors=[table],
        block_sparse_tensors=BlockSparseTensorsTorch(**forward),
        block_sparse_tensors_bwd=BlockSparseTensorsTorch(**backward),
        # Otherwise a forward without gradients (before activation recomputation) is another kernel to compile.
        return_lse=True,
    )
    return out.squeeze(0)
