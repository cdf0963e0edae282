"""What comes out: the predicted clean latents of every noisy patch (reference README section 7, "Final layer")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from ..objective.base import Inputs
from .embed import TimestepNetwork


class VideoHead(nn.Module):
    """LayerNorm without weights, modulated by the frame's timestep, then a linear map to a patch."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width = model.hidden_size
        self.time_embedder = TimestepNetwork(width, dtype, device)
        self.modulation = nn.Linear(width, 2 * width, dtype=dtype, device=device)
        self.linear = nn.Linear(width, model.patch_size**2 * channels, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, inputs: Inputs, scored: bool = False) -> Tensor:
        """Final hidden states ``[L, 1, D]`` -> predicted patches ``[noisy patches, p*p*C]`` float32, channel fastest.

        scored: hidden has the rows of noisy patches only, ``[noisy patches, 1, D]``.
        """
        noisy = hidden[:, 0] if scored else hidden[:, 0].index_select(0, inputs.noisy_rows)
        shift, scale = self.modulation(F.silu(self.time_embedder(inputs.timestep)))[inputs.noisy_frame].chunk(2, dim=-1)
        normed = F.layer_norm(noisy, noisy.shape[-1:], eps=1e-6)
        return self.linear(normed * (1 + scale) + shift).float()
