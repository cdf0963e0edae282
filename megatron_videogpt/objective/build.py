"""Objectives by name, their closed forms, and the networks that they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..codec.geometry import Geometry
from ..config.schema import Config
from .next_clip.work import next_clip_work
from .work import ObjectiveWork

if TYPE_CHECKING:
    from ..model.videogpt import VideoGPT
    from ..platforms import Platform
    from .base import Objective


def next_clip_diffusion(config: Config) -> Objective:
    """`NextClipDiffusion` of a run."""
    # It imports PyTorch, and `check` only asks for an objective's work.
    from .next_clip.objective import NextClipDiffusion

    return NextClipDiffusion(
        config.model.patch_size, config.model.position_table_size, config.objective.clean_retention
    )


OBJECTIVES: dict[str, Callable[[Config], Objective]] = {"next_clip_diffusion": next_clip_diffusion}
WORK: dict[str, Callable[[Config, Geometry], ObjectiveWork]] = {"next_clip_diffusion": next_clip_work}


def build_objective(config: Config) -> Objective:
    """The objective that `objective.name` names."""
    return OBJECTIVES[config.objective.name](config)


def work_of(config: Config, codec: Geometry) -> ObjectiveWork:
    """The closed forms of the objective that `objective.name` names."""
    return WORK[config.objective.name](config, codec)


def build_network(config: Config, channels: int, platform: Platform, backend: str, chunk: int = 0) -> VideoGPT:
    """One chunk of this pipeline rank's stage of the network that the objective trains.  Parameters have no values yet.

    channels: latent channels of the codec; backend: attention backend, resolved; chunk: which virtual stage of this
    rank.
    """
    # megatron-core looks for its device as it is imported, and objectives are looked at without one, too.
    from ..model.videogpt import VideoGPT
    from .next_clip.ends import ENDS

    return VideoGPT(config, channels, platform, backend, ENDS, chunk)
