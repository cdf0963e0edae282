"""The parameters of released folders, which hold Video-GPT: one objective's network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..condition.options import NONE, ConditionConfig
from ..config.schema import Config, ModelConfig
from ..errors import UserError
from ..model.parameters import Parameter, prefixed
from ..objective.build import parameter_table
from ..objective.next_clip.parameters import EMBED_TOKENS, POSITION_TABLE, TABLE

__all__ = ["EMBED_TOKENS", "POSITION_TABLE", "check_network", "parameters"]


def parameters(model: ModelConfig, condition: ConditionConfig = NONE) -> Iterator[Parameter]:
    """Of a model of these sizes, in the order of the folders; condition: what it was trained with."""
    return prefixed(TABLE, condition).entries(model)


def check_network(run: Path, config: Config) -> None:
    """UserError for a run whose objective trains another network, which these folders cannot hold."""
    if parameter_table(config) != prefixed(TABLE, config.condition):
        network = getattr(config.objective, "network", "")
        which = f" and objective.network = {network}" if network else ""
        raise UserError(
            f"{run}: a run of objective.name = {config.objective.name}{which}, whose network no exported folder holds "
            "yet; sample from the run itself (--checkpoint)"
        )
