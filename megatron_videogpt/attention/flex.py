"""Attention with FlexAttention and a block mask computed from the intervals by arithmetic: the CUDA default.

`create_block_mask` evaluates the mask of every pair (3.3 s and 707 MB at 7.7K tokens); counting the pairs of a tile from the intervals needs memory
for ``rows * tiles`` only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from ..sequence.intervals import padding_intervals

TILE = 128
"""Rows and keys of a mask tile; sequences are padded to a multiple."""

# Heads of 65 to 127 numbers are padded to 128, for which the kernels' own choice of tiles does not fit every GPU's shared memory.
_WIDE_HEAD_TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}

# Pure memoisation: every layer asks for the mask of the same tensor.
_masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def tiles(intervals: Tensor, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Which ``tile x tile`` tiles attend in part and which in full: two bool ``[L / tile, L / tile]``, never both true.

    intervals: int32 ``[L, 4]``, L a multiple of `tile`.
    """
    edges = torch.arange(0, intervals.shape[0] + 1, tile, dtype=torch.int32, device=intervals.device)
    a0, a1, b0, b1 = intervals.unsqueeze(-1).unbind(1)
    # A row sees clamp(edge, start, stop) - start keys before an edge; differences between edges count the keys of a tile.
    before = edges.clamp(a0, a1) + edges.clamp(b0, b1)
    seen = before.unflatten(0, (-1, tile)).sum(1).diff(dim=1)
    full = seen == tile * tile
    return (seen > 0) & ~full, full


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles as FlexAttention lists them: how many per row of tiles ``[1, 1, n]`` and which, chosen ones first ``[1, 1, n, n]``."""
    order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _sees(intervals: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask of single pairs, for tiles that attend in part."""
    a0, a1, b0, b1 = (x.contiguous() for x in intervals.unbind(1))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((key >= a0[query]) & (key < a1[query])) | ((key >= b0[query]) & (key < b1[query]))

    return sees


def block_mask(intervals: Tensor, tile: int = TILE) -> BlockMask:
    """FlexAttention's mask of int32 intervals ``[L, 4]``, padded to a multiple of `tile` rows that see the first row of the padding."""
    length = intervals.shape[0]
    padding = padding_intervals(length, -length % tile).to(intervals.device)
    padded = torch.cat([intervals, padding])
    partial, full = tiles(padded, tile)
    return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(full), BLOCK_SIZE=tile, mask_mod=_sees(padded), seq_lengths=(len(padded), len(padded)))


def _memoised(intervals: Tensor) -> BlockMask:
    version, mask = _masks.get(intervals, (-1, None))
    if version != intervals._version:
        mask = block_mask(intervals)
        _masks[intervals] = (intervals._version, mask)
    return mask


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention)


def attend(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float) -> Tensor:
    """Interval attention on CUDA; shapes as in `attention.attend`.

    Elsewhere it runs uncompiled, with dense scores and without a backward: good for tests only, and `attention.select` refuses it.
    """
    length, heads, head_dim = q.shape
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, -length % TILE)).transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    options = _WIDE_HEAD_TILES if 64 < head_dim < 128 else None
    kernel = _compiled() if q.is_cuda else flex_attention
    out = kernel(q, k, v, block_mask=_memoised(intervals), scale=scale, enable_gqa=k.shape[1] != heads, kernel_options=options)
    return out[0, :, :length].transpose(0, 1)
