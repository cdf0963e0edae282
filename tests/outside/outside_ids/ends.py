"""Ids in, this rank's part of the logits out."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from megatron_videogpt.model.videogpt import Ends
from megatron_videogpt.sequence.row import Row

from .parameters import BITS, TABLE


class IdEmbedding(nn.Module):
    """Ids to hidden states."""

    def __init__(self, model: Any, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.ids = nn.Embedding(2**BITS, model.hidden_size, dtype=dtype, device=device)

    def forward(self, row: Row) -> Tensor:
        """``[l, 1, D]``; padding rows are zero."""
        token = row.streams["token"]
        values = self.ids(token["id"])
        hidden = torch.zeros(len(row.positions), values.shape[1], dtype=values.dtype, device=values.device)
        return hidden.index_put((token.rows,), values).unsqueeze(1)


class VocabularyHead(nn.Module):
    """A linear map of which each tensor parallel rank has some of the outputs."""

    def __init__(self, model: Any, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        share = 2**BITS // parallel_state.get_tensor_model_parallel_world_size()
        self.weight = nn.Parameter(torch.empty(share, model.hidden_size, dtype=dtype, device=device))

    def forward(self, hidden: Tensor, row: Row, scored: bool = False) -> Tensor:
        """Hidden states of all rows, or of the scored ones, ``[., 1, D]`` -> float32 ``[n, V/TP]``."""
        rows = hidden[:, 0] if scored else hidden[:, 0].index_select(0, row.scored_rows)
        return nn.functional.linear(rows, self.weight).float()


ENDS = Ends(IdEmbedding, VocabularyHead, TABLE, split_head=True)
