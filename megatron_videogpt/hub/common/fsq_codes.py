"""Finite scalar quantization (FSQ): numbers of d channels to codes, whose channels have a few levels each, and codes to
ids and back.  All in float32; code r / (l // 2) of a channel with l levels, r a whole number from -(l // 2) on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHRINK = 1 - 0.001  # of the range before rounding, so that its ends round inwards
STORED = 0.1  # how far from a level, in levels, a code may lie that went through 16 bits


def bounded(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Encoder output [B, d, ...] squeezed into the range of each channel's levels, float32; rounding it gives whole
    numbers from -(l // 2) on.
    """
    level = _column(levels, z)
    half = (level - 1) * SHRINK / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0)
    return (z.float() + (offset / half).tan()).tanh() * half - offset


def quantized(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes of encoder output [B, d, ...], float32 within [-1, 1]; the gradient passes the rounding unchanged."""
    inside = bounded(z, levels)
    return (inside + (inside.round() - inside).detach()) / (_column(levels, z) // 2)


def nearest(latents: Tensor, levels: Sequence[int]) -> Tensor:
    """The codes next to any numbers [B, d, ...], float32: what a model of continuous latents predicts has none of its
    own.  NaN stays.
    """
    level = _column(levels, latents)
    half = level // 2
    return (latents.float() * half).round().clamp(-half, level - 1 - half) / half


def digits_of(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """int64 [B, d, ...] from 0 on of codes [B, d, ...], which are not checked: the host does not wait for them."""
    half = _column(levels, codes) // 2
    return (codes.float() * half).round().long() + half


def ids_of(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """int64 [B, ...] of codes [B, d, ...], which may have been stored in 16 bits; the first channel counts fastest.
    ValueError where they are none.
    """
    if codes.ndim < 2 or codes.shape[1] != len(levels):
        raise ValueError(f"codes of shape {list(codes.shape)}: expected [B, {len(levels)}, ...], a channel per level")
    level = _column(levels, codes)
    place = codes.float() * (level // 2) + level // 2
    digit = place.round()
    wrong = ~(((place - digit).abs() <= STORED) & (digit >= 0) & (digit < level))
    if wrong.any():
        where = wrong.nonzero()[0]
        size = levels[int(where[1])]
        raise ValueError(
            f"codes outside the levels: {codes[tuple(where)].item():.6g} in channel {int(where[1])}, expected one of "
            f"{size} from {-(size // 2)}/{size // 2} to {size - 1 - size // 2}/{size // 2}; are these codes of another "
            "tokenizer?"
        )
    return (digit.long() * _column(_factors(levels), codes)).sum(1)


def codes_of(ids: Tensor, levels: Sequence[int]) -> Tensor:
    """float32 [B, d, ...] of ids [B, ...], the inverse of `ids_of`; ValueError for ids that do not exist."""
    size = math.prod(levels)
    wrong = (ids < 0) | (ids >= size)
    if wrong.any():
        raise ValueError(f"id {int(ids[wrong][0])}: outside the codebook, expected 0 to {size - 1}")
    like = ids.unsqueeze(1)
    level = _column(levels, like)
    return (like.long() // _column(_factors(levels), like) % level - level // 2) / (level // 2)


def _factors(levels: Sequence[int]) -> list[int]:
    return [math.prod(levels[:channel]) for channel in range(len(levels))]


def _column(values: Sequence[int], like: Tensor) -> Tensor:
    """A value a channel, shaped to go with [B, d, ...]."""
    # Filled there: from a list it would be copied, and the host would wait for the device.
    filled = [torch.full((1,), value, device=like.device) for value in values]
    return torch.cat(filled).view(-1, *[1] * (like.ndim - 2))
