"""Objectives by name, and the networks that they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..codec.geometry import Geometry
from ..config.schema import Config
from ..data.packing import SampleWork
from ..platforms import Platform
from .base import Objective
from .next_clip import sample_work as next_clip_work
from .next_clip.objective import NextClipDiffusion

if TYPE_CHECKING:
    from ..model.videogpt import VideoGPT

OBJECTIVES: dict[str, Callable[[Config], Objective]] = {
    "next_clip_diffusion": lambda config: NextClipDiffusion(
        config.model.patch_size, config.model.position_table_size, config.objective.clean_retention
    ),
}


def build_objective(config: Config) -> Objective:
    """The objective that `objective.name` names."""
    return OBJECTIVES[config.objective.name](config)


def sample_work(config: Config, codec: Geometry) -> SampleWork:
    """What the samples of a run ask for."""
    return next_clip_work.sample_work(config, codec)


def build_network(config: Config, channels: int, platform: Platform, backend: str, chunk: int = 0) -> VideoGPT:
    """One chunk of this pipeline rank's stage of the network that the objective trains.  Parameters have no values yet.

    channels: latent channels of the codec; backend: attention backend, resolved; chunk: which virtual stage of this
    rank.
    """
    # megatron-core looks for its device as it is imported, and objectives are looked at without one, too.
    from ..model.videogpt import VideoGPT
    from .next_clip.ends import ENDS

    return VideoGPT(config, channels, platform, backend, ENDS, chunk)
