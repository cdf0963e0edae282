"""What stands around the decoder: patches to hidden states and back, and the side inputs that are trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.model.videogpt import Ends
from megatron_videogpt.sequence.row import Context, Row

from .layers import layer
from .parameters import TABLE, WORD


class Embedding(nn.Module):
    """Patches to hidden states."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.patch = nn.Linear(channels, model.hidden_size, dtype=dtype, device=device)

    def forward(self, row: Row) -> Tensor:
        """``[l, 1, D]``."""
        tokens = row.streams["all"]
        values = self.patch(tokens["patch"].to(self.patch.weight.dtype))
        hidden = torch.zeros(len(row.positions), values.shape[1], dtype=values.dtype, device=values.device)
        return hidden.index_put((tokens.rows,), values).unsqueeze(1)


class Head(nn.Module):
    """Hidden states to patches."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(model.hidden_size, channels, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, row: Row, scored: bool = False) -> Tensor:
        """Of scored tokens ``[n, C]``, float32."""
        return self.linear(hidden[:, 0] if scored else hidden[row.scored_rows, 0]).float()


class Sides(nn.Module):
    """Modulation of each frame ``[F, 6D]`` and projected words ``[T, D]``."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.level = nn.Linear(2, 6 * model.hidden_size, dtype=dtype, device=device)
        self.word = nn.Linear(WORD, model.hidden_size, dtype=dtype, device=device)

    def forward(self, row: Row) -> dict[str, Context]:
        """See the class."""
        level, words = row.units["level"], row.context["words"].value
        waves = torch.stack([level.cos(), level.sin()], dim=-1)
        modulation = self.level(waves.to(self.level.weight.dtype))
        text = F.silu(self.word(words.to(self.word.weight.dtype)))
        return {"modulation": Context(modulation), "text": Context(text)}


ENDS = Ends(Embedding, Head, TABLE, layer=layer, sides=Sides)
