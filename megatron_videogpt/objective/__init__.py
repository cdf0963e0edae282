"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable

from ..config.schema import Config
from .base import Inputs, Objective
from .next_clip import NextClipDiffusion

OBJECTIVES: dict[str, Callable[[Config], Objective]] = {
    "next_clip_diffusion": lambda config: NextClipDiffusion(config.model.patch_size, config.model.position_table_size, config.objective.clean_retention),
}


def build_objective(config: Config) -> Objective:
    """The objective that `objective.name` names."""
    return OBJECTIVES[config.objective.name](config)


__all__ = ["OBJECTIVES", "Inputs", "Objective", "build_objective"]
