"""The parameters of released folders, which hold Video-GPT: one objective's network."""

from __future__ import annotations

from collections.abc import Iterator

from ..condition.options import NONE, ConditionConfig
from ..config.schema import ModelConfig
from ..model.parameters import Parameter, prefixed
from ..objective.next_clip.parameters import EMBED_TOKENS, POSITION_TABLE, TABLE

__all__ = ["EMBED_TOKENS", "POSITION_TABLE", "parameters"]


def parameters(model: ModelConfig, condition: ConditionConfig = NONE) -> Iterator[Parameter]:
    """Of a model of these sizes, in the order of the folders; condition: what it was trained with."""
    return prefixed(TABLE, condition).entries(model)
