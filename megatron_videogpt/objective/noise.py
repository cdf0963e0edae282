"""Randomness that belongs to a sample, and the flow between noise and data."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from ..data.order import permute

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""


def generator(key: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on (key, purpose) alone, so that every rank and every run draws the same numbers."""
    return torch.Generator().manual_seed(_seed(key, purpose))


def _seed(key: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{key}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def normal(key: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 tensor of (key, purpose)."""
    return torch.randn(shape, generator=generator(key, purpose))


def uniform(key: int, purpose: str, count: int, stratum: tuple[int, int] | None = None) -> Tensor:
    """`count` float32 draws from [0, 1) of (key, purpose).

    stratum: (i, n), the place of a sample among n, spreads their draws: draw number k of each lies in another of n
    equal parts of [0, 1), to a float32's rounding.  Which part follows from (purpose, k, i, n) alone, where in it from
    the key.
    """
    draws = torch.rand(count, generator=generator(key, purpose))
    if stratum is None:
        return draws
    place, parts = stratum
    part = [int(permute([place], parts, _seed(number, f"{purpose} strata"))[0]) for number in range(count)]
    spread = (np.array(part, np.float64) + draws.numpy()) / parts
    return torch.from_numpy(spread).float().clamp(max=BELOW_ONE)


def exponential(key: int, purpose: str, count: int) -> Tensor:
    """`count` float32 draws from Exp(1) of (key, purpose)."""
    return torch.empty(count).exponential_(generator=generator(key, purpose))


def mix(data: Tensor, noise: Tensor, retention: Tensor) -> Tensor:
    """``t*x1 + (1-t)*x0`` with one t per frame: data, noise ``[F, C, h, w]``, retention ``[F]`` (reference README
    section 8).
    """
    t = retention.reshape(-1, 1, 1, 1)
    return t * data + (1 - t) * noise


def posterior(mean: Tensor, logvar: Tensor | None, key: int, purpose: str) -> Tensor:
    """A draw from a codec's posterior, or its mean when the codec gives no variance."""
    if logvar is None:
        return mean
    return mean + torch.exp(0.5 * logvar) * normal(key, purpose, tuple(mean.shape))
