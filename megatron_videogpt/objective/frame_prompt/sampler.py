"""Videos that go on chunk by chunk: from a run's configuration to the sampler's settings, and where its noise comes
from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config, SampleConfig
from ...hub.common.sampling_videogpt import Denoiser, Step
from ..base import Sampler, Watch
from ..flow_sampler import sampling
from ..noise import normal
from .factorised.options import FACTORISED
from .given import check_given
from .options import longest_window
from .rollout import FrameNoise, chunks_of, pieces


def keyed_noise(keys: Sequence[int], seed: int) -> FrameNoise:
    """Noise that depends on the video's key, the seed, the frame's number and the purpose alone."""

    def noise(video: int, purpose: str, first: int, shape: tuple[int, ...]) -> Tensor:
        drawn = [normal(keys[video], f"sample/{seed}/{purpose}/{first + n}", shape[1:]) for n in range(shape[0])]
        return torch.stack(drawn) if drawn else torch.zeros(shape)

    return noise


class FrameSampler:
    """`Sampler` of what denoises chunks of frames behind their prompt.  chunk: most frames of one; window: most frames
    that the model has learned to see at once; patch: `model.patch_size`.
    """

    def __init__(self, denoiser: Denoiser, chunk: int, window: int, patch: int = 1) -> None:
        self.denoiser, self.chunk, self.window, self.patch = denoiser, chunk, window, patch

    def rollout(
        self,
        histories: list[Tensor],
        settings: SampleConfig,
        keys: Sequence[int],
        seed: int,
        conditions: list[Tensor | None] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Tensor]]:
        """See `Sampler`: clips of more frames than a chunk are made in several, and a window has no more frames than
        the model was trained with.
        """
        check_given(histories, self.patch)

        def observe(step: Step) -> None:
            if watch is not None:
                watch(sum(map(len, step.z)) / settings.steps, 0)

        clips = pieces(settings.clips, self.chunk)
        every, window = tuple(frames for parts in clips for frames in parts), min(settings.window, self.window)
        chosen = sampling(replace(settings, clips=every, window=window), given=any(map(len, histories)))
        made = chunks_of(
            self.denoiser,
            histories,
            chosen,
            keyed_noise(keys, seed),
            settings.window_end == "keep",
            conditions,
            observe,
        )
        for parts in clips:
            done = [next(made) for _ in parts]
            yield [torch.cat(video) for video in zip(*done)]


def build_sampler(chunks: list[Any], config: Config, device: torch.device) -> Sampler:
    """See `objective.build`."""
    if config.objective.network == FACTORISED:
        from .factorised.sampler import FactorisedSampler

        return FactorisedSampler(chunks, config, device)
    # megatron-core looks for its device as it is imported.
    from .denoiser import build_denoiser

    denoiser, patch = build_denoiser(chunks, config, device), config.model.patch_size
    return FrameSampler(denoiser, config.objective.chunk, longest_window(config), patch)
