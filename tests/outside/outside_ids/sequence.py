"""Ids, targets and masks of next block prediction (tests/golden/nbp/README.md names the source): `prefix` condition
tokens that all see each other, then blocks of `block` codes in raster order, each of which predicts the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Target of a token that predicts nothing."""


def ends(tokens: int, block: int, prefix: int = 0, hybrid: bool = False) -> Tensor:
    """int32 ``[tokens]``: token q sees the keys ``[0, e(q))``.  hybrid: the first block goes one token at a time."""
    place = torch.arange(tokens)
    seen = prefix + block * ((place - prefix).div(block, rounding_mode="floor") + 1)
    if hybrid:
        seen = torch.where(place < prefix + block, place + 1, seen)
    return torch.where(place < prefix, prefix, seen).to(torch.int32)


def ids_and_targets(
    codes: Tensor, condition: Tensor, block: int, offsets: tuple[int, int], hybrid: bool
) -> tuple[Tensor, Tensor]:
    """Codes int64 ``[N]`` in raster order, condition int64 ``[m]`` -> (input ids ``[L]``, targets ``[L]``).

    offsets: of condition and code ids.  hybrid: a begin token (id 0) and block - 1 middle tokens (ids 1 ...) make the
    first block a target too.
    """
    shifted = codes + offsets[1]
    if hybrid:
        middle = torch.arange(1, block)
        video = torch.cat([torch.zeros(1, dtype=torch.int64), shifted[:block], middle, shifted[block:]])
        targets = shifted
    else:
        video, targets = shifted, shifted[block:]
    ids = torch.cat([condition + offsets[0], video])[:-block]
    return ids, torch.cat([torch.full_like(condition, IGNORED), targets])
