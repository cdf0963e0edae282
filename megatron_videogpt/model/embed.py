"""What goes into the decoder: patch projections, hint tokens, time tokens and 2-D positions (reference README section 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config.schema import ModelConfig
from ..objective.base import Inputs

FREQUENCIES = 256
"""Width of the sinusoidal timestep embedding."""


def timestep_embedding(t: Tensor) -> Tensor:
    """Timesteps ``[F]`` in [0, 1] -> ``[F, 256]`` float32: cosines, then sines, at 128 frequencies from 1 down to 1/10000."""
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepNetwork(nn.Module):
    """Timestep -> ``[F, D]``: linear, SiLU, linear on the sinusoidal embedding."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width, dtype=dtype, device=device), nn.SiLU(), nn.Linear(width, width, dtype=dtype, device=device))

    def forward(self, t: Tensor) -> Tensor:
        """``[F]`` -> ``[F, D]`` in the parameters' dtype."""
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))


def position_axis(side: int, width: int) -> Tensor:
    """One axis of the fixed 2-D table: ``[S, D/2]`` float32, sines then cosines of ``i / (S/64)`` at D/4 frequencies."""
    quarter = width // 4
    omega = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    # Rounded to float32 first, because released checkpoints carry a table made that way.
    place = (torch.arange(side, dtype=torch.float32) / (side / 64)).double()
    angle = place[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class VideoEmbedding(nn.Module):
    """Assembles the hidden states of one packed row."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width, values = model.hidden_size, model.patch_size**2 * channels
        self.noisy_patch = nn.Linear(values, width, dtype=dtype, device=device)
        self.clean_patch = nn.Linear(values, width, dtype=dtype, device=device)
        self.time_token = TimestepNetwork(width, dtype, device)
        self.hint = nn.Parameter(torch.empty(3, width, dtype=dtype, device=device))
        self.register_buffer("axis", position_axis(model.position_table_size, width).to(device), persistent=False)

    def positions(self, grid: Tensor) -> Tensor:
        """Table entries ``[N, D]`` of patches at (row, column) ``[N, 2]``: the column's half comes first."""
        return torch.cat([self.axis[grid[:, 1]], self.axis[grid[:, 0]]], dim=-1)

    def forward(self, inputs: Inputs) -> Tensor:
        """A packed row, or a shard of one -> hidden states ``[l, 1, D]`` in the parameters' dtype; padding rows are zero."""
        dtype = self.hint.dtype
        noisy = self.noisy_patch(inputs.noisy.to(dtype)) + self.positions(inputs.noisy_grid).to(dtype)
        clean = self.clean_patch(inputs.clean.to(dtype)) + self.positions(inputs.clean_grid).to(dtype)
        values = torch.cat([self.hint[inputs.hint_ids], self.time_token(inputs.timestep)[inputs.time_frames], noisy, clean])
        rows = torch.cat([inputs.hint_rows, inputs.time_rows, inputs.noisy_rows, inputs.clean_rows])
        hidden = torch.zeros(len(inputs.positions), values.shape[1], dtype=dtype, device=values.device)
        # Unlike index_copy, this keeps the row numbers alone for its backward pass, not the values too.
        return hidden.index_put((rows,), values).unsqueeze(1)
