"""Latents as patches, and the fixed 2-D positions of patches (tests/golden/README.md, sections 2 and 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(latents: Tensor, patch: int) -> Tensor:
    """``[F, C, h, w]`` -> ``[F*P, p*p*C]``: patches row by row, inside a patch row, column,
    channel (channel fastest).
    """
    frames, channels, height, width = latents.shape
    grid = latents.reshape(frames, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, patch * patch * channels)


def unpatchify(patches: Tensor, frames: int, grid: tuple[int, int], patch: int) -> Tensor:
    """``[F*P, p*p*C]`` -> ``[F, C, h, w]``; the inverse of `patchify`."""
    rows, columns = grid
    cells = patches.reshape(frames, rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(frames, -1, rows * patch, columns * patch)


def grid_of(latents: Tensor, patch: int) -> tuple[int, int]:
    """Patch rows and columns of latents ``[..., h, w]``."""
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def table_places(frames: int, grid: tuple[int, int], side: int) -> Tensor:
    """(row, column) in the ``side x side`` position table of every patch of `frames` frames ``[F*P, 2]``: the centred
    crop.
    """
    rows, columns = grid
    top, left = (side - rows) // 2, (side - columns) // 2
    places = torch.cartesian_prod(torch.arange(top, top + rows), torch.arange(left, left + columns))
    return places.repeat(frames, 1)


def position_axis(side: int, width: int) -> Tensor:
    """One axis of the fixed 2-D table: ``[S, D/2]`` float32, sines then cosines of ``i / (S/64)``
    at D/4 frequencies.
    """
    # Rounded to float32 first, because released checkpoints carry a table made that way.
    return sine_table(torch.arange(side, dtype=torch.float32) / (side / 64), width // 2)


def sine_table(places: Tensor, width: int) -> Tensor:
    """Places float32 ``[n]`` -> ``[n, width]`` float32: sines, then cosines, at ``width / 2`` frequencies from 1 down
    towards 1/10000.
    """
    half = width // 2
    omega = 1.0 / 10000.0 ** (torch.arange(half, dtype=torch.float64) / half)
    angle = places.double()[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()
