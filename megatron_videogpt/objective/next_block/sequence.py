"""Ids, targets and mask of one video (tests/golden/nbp/README.md names what they are held against).

Codes come in an order in which every block is a run of `block` tokens: raster order, time slowest, or, for blocks of a
shape, that of `block_order`.  Condition tokens stand before them, and all see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .vocabulary import HYBRID, Vocabulary


def block_order(grid: tuple[int, int, int], shape: tuple[int, int, int]) -> Tensor:
    """int64 ``[N]``: place in raster order of every token of a grid (frames, rows, columns) when blocks of this shape
    come in raster order, and so do the tokens inside of each.

    The published code has no such order: its blocks are runs of the raster order.
    """
    cells = torch.arange(grid[0] * grid[1] * grid[2])
    cut = [size for pair in ((whole // part, part) for whole, part in zip(grid, shape)) for size in pair]
    return cells.view(cut).permute(0, 2, 4, 1, 3, 5).flatten()


def ends(tokens: int, block: int, prefix: int = 0, hybrid: bool = False) -> Tensor:
    """int32 ``[tokens]``: token q sees the keys ``[0, e(q))``.  hybrid: the first block goes one token at a time."""
    place = torch.arange(tokens)
    seen = prefix + block * ((place - prefix).div(block, rounding_mode="floor") + 1)
    if hybrid:
        seen = torch.where(place < prefix + block, place + 1, seen)
    return torch.where(place < prefix, prefix, seen).to(torch.int32)


@dataclass(frozen=True)
class Sequence:
    """One video as the model reads it.

    ids: int64 ``[L]``; ends: int32 ``[L]``, see `ends`; first: row of the first scored token, behind the condition;
    targets, frames: int64 ``[L - first]``, id and latent frame of what each row from there on predicts; scored: whether
    it counts in the loss; dropped: whether its condition is replaced; key: of its sample.
    """

    ids: Tensor
    ends: Tensor
    first: int
    targets: Tensor
    frames: Tensor
    scored: bool = True
    dropped: bool = False
    key: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def ids_and_targets(codes: Tensor, condition: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Codes int64 ``[N]``, condition int64 ``[m]`` -> (input ids ``[L]``, targets of the rows behind the condition).

    A row predicts the code at its place in the next block.  hybrid: a begin token and block - 1 middle tokens make the
    first block a target too: one token predicts the next, and the last of these and the middle tokens the second block.
    """
    block, shifted = vocabulary.block, codes + vocabulary.code_offset
    video, targets = shifted, shifted[block:]
    if vocabulary.layout == HYBRID:
        begin, middle = torch.zeros(1, dtype=torch.int64), torch.arange(1, block)
        video, targets = torch.cat([begin, shifted[:block], middle, shifted[block:]]), shifted
    ids = torch.cat([condition + vocabulary.condition_offset, video])
    return ids[: len(ids) - block], targets


def filler(tokens: int, vocabulary: Vocabulary) -> Sequence:
    """Something for a row without samples, whose tokens may be too few for a block: nothing of it counts."""
    ids = torch.full((tokens,), vocabulary.code_offset)
    return Sequence(ids, torch.full_like(ids, tokens).int(), 0, ids, torch.zeros_like(ids), scored=False)
