"""The tokens that stand before a video and tell what it shows: a learned vector for each class, or the features of a
text through one linear map.

They are the model's own, for every objective whose rows have a stream ``prefix`` (value: `data.plans.Sample.condition`
of its tokens one after another).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition.folder import text_width
from ..config.schema import Config
from ..sequence.row import Row


def no_prefix(config: Config) -> Tensor | None:
    """What the stream ``prefix`` holds of no token: int64 ``[0]`` of classes, float32 ``[0, E]`` of texts; None for
    models without such tokens.
    """
    if config.condition.kind == "class":
        return torch.zeros(0, dtype=torch.int64)
    return torch.zeros(0, text_width(config.condition)) if config.condition.kind == "text" else None


class ClassTokens(nn.Module):
    """A learned table ``[classes, D]``."""

    def __init__(self, classes: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(classes, width, dtype=dtype, device=device))

    def forward(self, number: Tensor) -> Tensor:
        """Numbers of classes int64 ``[n]`` -> ``[n, D]``."""
        return F.embedding(number, self.table)


class TextTokens(nn.Module):
    """One linear map of text features to the width of the model."""

    def __init__(self, features: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width, dtype=dtype, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """float32 ``[n, E]`` -> ``[n, D]``."""
        return self.linear(features.to(self.linear.weight.dtype))


def build_prefix(config: Config, dtype: torch.dtype, device: torch.device) -> ClassTokens | TextTokens | None:
    """What makes a prefix of the run's condition; None without one."""
    width, condition = config.model.hidden_size, config.condition
    if condition.kind == "class":
        return ClassTokens(len(condition.classes), width, dtype, device)
    return TextTokens(text_width(condition), width, dtype, device) if condition.kind == "text" else None


def place_prefix(prefix: nn.Module, hidden: Tensor, row: Row) -> Tensor:
    """Hidden states ``[l, 1, D]`` of a row or shard with those of its prefix in their places.

    A row without any goes the same way, so that every micro-batch gives the prefix's parameters a gradient.
    """
    stream = row.streams["prefix"]
    return hidden.index_put((stream.rows,), prefix(stream["value"]).unsqueeze(1))
