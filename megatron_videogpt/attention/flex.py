"""Attention with FlexAttention and a block mask computed from the intervals by arithmetic: a cross-check of the other
kernels on CUDA.

`create_block_mask` evaluates the mask of every pair (3.3 s and 707 MB at 7.7K tokens); `tiles` counts instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .tiles import memoised, tile_lists

TILE = 128
"""Rows and keys of a mask tile; sequences are padded to a multiple."""

# Heads of 65 to 127 numbers are padded to 128, for which the kernels' own choice of tiles does not fit every GPU's
# shared memory.
_WIDE_HEAD_TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}


def _sees(intervals: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask of single pairs, for tiles that attend in part."""
    a0, a1, b0, b1 = (x.contiguous() for x in intervals.unbind(1))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((key >= a0[query]) & (key < a1[query])) | ((key >= b0[query]) & (key < b1[query]))

    return sees


def block_mask(intervals: Tensor, keys: int, tile: int = TILE) -> BlockMask:
    """FlexAttention's mask of int32 intervals ``[L, 4]``; rows and keys are padded to multiples of `tile`, and the
    padding's rows see key 0.
    """
    rows, columns = (-(-count // tile) * tile for count in (intervals.shape[0], keys))
    padded = F.pad(intervals, (0, 0, 0, rows - intervals.shape[0]))
    padded[intervals.shape[0] :, 1] = 1
    by_row, _ = tile_lists(padded, tile, tile, columns)
    partial_count, partial, full_count, full = (x[None, None] for x in by_row)
    return BlockMask.from_kv_blocks(
        partial_count, partial, full_count, full, BLOCK_SIZE=tile, mask_mod=_sees(padded), seq_lengths=(rows, columns)
    )


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention)


def attend(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = False) -> Tensor:
    """Interval attention on CUDA; shapes as in `attention.attend`.  FlexAttention adds in a fixed order,
    `deterministic` or not.

    Elsewhere it runs uncompiled, with dense scores and without a backward: good for tests only, and `attention.select`
    refuses it.
    """
    length, heads, head_dim = q.shape
    mask = memoised(intervals, ("flex", k.shape[0]), lambda: block_mask(intervals, k.shape[0]))
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, -x.shape[0] % TILE)).transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    options = _WIDE_HEAD_TILES if 64 < head_dim < 128 else None
    kernel = _compiled() if q.is_cuda else flex_attention
    out = kernel(q, k, v, block_mask=mask, scale=scale, enable_gqa=k.shape[1] != heads, kernel_options=options)
    return out[0, :, :length].transpose(0, 1)
