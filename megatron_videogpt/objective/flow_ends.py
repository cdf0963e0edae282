"""What objectives that denoise put around the decoder: patch projections, hint tokens, time tokens and 2-D positions
before it, the predicted clean latents of every scored patch behind it (tests/golden/README.md, section 7).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from ..model.patches import position_axis
from ..model.timesteps import TimestepNetwork
from ..sequence.row import Row


class VideoEmbedding(nn.Module):
    """Assembles the hidden states of one packed row (`flow_rows.assemble`).

    hints: rows of the table of hint tokens; clean: whether there are clean frames, with a projection of their own.
    """

    axis: Tensor

    def __init__(
        self,
        model: ModelConfig,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        hints: int = 3,
        clean: bool = True,
    ) -> None:
        super().__init__()
        width, values = model.hidden_size, model.patch_size**2 * channels
        self.noisy_patch = nn.Linear(values, width, dtype=dtype, device=device)
        self.clean_patch = nn.Linear(values, width, dtype=dtype, device=device) if clean else None
        self.time_token = TimestepNetwork(width, dtype, device)
        self.hint = nn.Parameter(torch.empty(hints, width, dtype=dtype, device=device))
        self.register_buffer("axis", position_axis(model.position_table_size, width).to(device), persistent=False)

    def positions(self, grid: Tensor) -> Tensor:
        """Table entries ``[N, D]`` of patches at (row, column) ``[N, 2]``: the column's half comes first."""
        return torch.cat([self.axis[grid[:, 1]], self.axis[grid[:, 0]]], dim=-1)

    def forward(self, row: Row) -> Tensor:
        """A packed row, or a shard of one -> hidden states ``[l, 1, D]`` in the parameters' dtype; padding rows are
        zero.
        """
        dtype, streams = self.hint.dtype, row.streams
        hint, time = streams["hint"], streams["time"]
        projections = {"noisy": self.noisy_patch, "clean": self.clean_patch}
        patches = {name: projection for name, projection in projections.items() if projection is not None}
        embedded = [
            projection(streams[name]["patch"].to(dtype)) + self.positions(streams[name]["place"]).to(dtype)
            for name, projection in patches.items()
        ]
        values = torch.cat([self.hint[hint["id"]], self.time_token(row.units["timestep"])[time["frame"]], *embedded])
        rows = torch.cat([hint.rows, time.rows, *(streams[name].rows for name in patches)])
        hidden = torch.zeros(len(row.positions), values.shape[1], dtype=dtype, device=values.device)
        # Unlike index_copy, this keeps the row numbers alone for its backward pass, not the values too.
        return hidden.index_put((rows,), values).unsqueeze(1)


class VideoHead(nn.Module):
    """LayerNorm without weights, modulated by the frame's timestep, then a linear map to a patch."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width = model.hidden_size
        self.time_embedder = TimestepNetwork(width, dtype, device)
        self.modulation = nn.Linear(width, 2 * width, dtype=dtype, device=device)
        self.linear = nn.Linear(width, model.patch_size**2 * channels, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, row: Row, scored: bool = False) -> Tensor:
        """Final hidden states ``[L, 1, D]`` -> predicted patches ``[scored patches, p*p*C]`` float32, channel fastest.

        scored: hidden has the rows of scored patches only, ``[scored patches, 1, D]``.
        """
        read = hidden.squeeze(1) if scored else hidden.squeeze(1).index_select(0, row.scored_rows)
        frame = row.streams[row.scored]["frame"]
        shift, scale = self.modulation(F.silu(self.time_embedder(row.units["timestep"])))[frame].chunk(2, dim=-1)
        normed = F.layer_norm(read, read.shape[-1:], eps=1e-6)
        return self.linear(normed * (1 + scale) + shift).float()
