"""Noise levels as the network sees them (tests/golden/README.md, section 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256
"""Width of the sinusoidal timestep embedding."""


def timestep_embedding(t: Tensor) -> Tensor:
    """Timesteps ``[F]`` in [0, 1] -> ``[F, 256]`` float32: cosines, then sines, at 128 frequencies from 1 down to
    1/10000.
    """
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepNetwork(nn.Module):
    """Timestep -> ``[F, D]``: linear, SiLU, linear on the sinusoidal embedding."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, width, dtype=dtype, device=device),
            nn.SiLU(),
            nn.Linear(width, width, dtype=dtype, device=device),
        )

    def forward(self, t: Tensor) -> Tensor:
        """``[F]`` -> ``[F, D]`` in the parameters' dtype."""
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))
