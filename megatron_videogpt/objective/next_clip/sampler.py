"""Clips from noise, each after those before it, and where that noise comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config, SampleConfig
from ...hub.common.sampling_videogpt import Denoiser, Noise, Step, rollout
from ..base import Watch
from ..flow_sampler import sampling
from ..noise import normal


def keyed_noise(keys: Sequence[int], seed: int) -> Noise:
    """Noise that depends on the video's key, the seed, the clip's number and the purpose alone, whatever else is in the
    batch, on every rank alike.
    """
    return lambda video, clip, purpose, shape: normal(keys[video], f"sample/{seed}/{clip}/{purpose}", shape)


class ClipSampler:
    """`Sampler` of what denoises clips."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def rollout(
        self,
        histories: list[Tensor],
        settings: SampleConfig,
        keys: Sequence[int],
        seed: int,
        conditions: list[Tensor | None] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Tensor]]:
        """See `Sampler`."""

        def observe(step: Step) -> None:
            if watch is not None:
                watch(sum(map(len, step.z)) / settings.steps, 0)

        chosen = sampling(settings, given=any(map(len, histories)))
        return rollout(self.denoiser, histories, chosen, keyed_noise(keys, seed), observe, conditions)


def build_sampler(chunks: list[Any], config: Config, device: torch.device) -> ClipSampler:
    """See `objective.build`."""
    # megatron-core looks for its device as it is imported.
    from .denoiser import build_denoiser

    return ClipSampler(build_denoiser(chunks, config, device))
