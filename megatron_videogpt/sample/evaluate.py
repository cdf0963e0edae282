"""How far predicted pixels are from the true ones, beside two simple guesses: repeating the last given frame, and
letting every pixel go on as it changed last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..codec.base import Codec
from ..config.schema import SampleConfig
from ..data.plans import Sample
from ..objective.base import Sampler


def pixel_frames(codec: Codec, latent_frames: int) -> int:
    """Video frames that so many latent frames stand for (a temporal stride s joins s frames into one, the very first
    frame alone).
    """
    return (latent_frames - 1) * codec.temporal_stride + 1 if latent_frames else 0


def decode_continuation(codec: Codec, history: Tensor, new: Tensor) -> Tensor:
    """Frames of the new latents alone: ``[F, 3, H, W]`` in [-1, 1], clamped.  A codec that joins frames in time decodes
    the history with them.
    """
    if codec.temporal_stride == 1:
        return codec.decode(new).clamp(-1, 1)
    video = codec.decode(torch.cat([history, new]))
    return video[pixel_frames(codec, len(history)) :].clamp(-1, 1)


def predict(
    sampler: Sampler,
    samples: Sequence[Sample],
    given: int,
    generated: int,
    settings: SampleConfig,
    seed: int,
    batch: int = 8,
) -> list[Tensor]:
    """Latents ``[generated, C, h, w]`` that follow the first `given` latent frames of every sample, `batch` samples at
    a time.

    Each is told its condition.  They come in the clips of `settings`, where those add up to `generated`, else as one
    clip; the window holds everything.

    Every rank of a model parallel group must call this with the same samples.  steps, guidance and time_shift come from
    `settings` too.
    """
    clips = settings.clips if sum(settings.clips) == generated else (generated,)
    settings = replace(settings, clips=clips, window=given + generated)
    predicted: list[Tensor] = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        histories, keys = [sample.mean[:given] for sample in part], [sample.key for sample in part]
        conditions = [sample.condition for sample in part]
        found = list(sampler.rollout(histories, settings, keys, seed, conditions))
        predicted += [torch.cat(parts) for parts in zip(*found)]
    return predicted


def squared_errors(predicted: Tensor, pixels: np.ndarray | Tensor, first: int) -> tuple[float, float]:
    """Mean squared error in [0, 1] pixel units of a prediction, and of repeating frame ``first - 1`` instead.

    Args:
        predicted: ``[F, 3, H, W]`` in [-1, 1].
        pixels: the true video from its beginning, uint8 ``[N, H, W, 3]``; where it ends early, only the frames it has
            count.
        first: number of the first predicted frame, at least 1 and below N.
    """
    video = torch.as_tensor(pixels).to(torch.float64) / 255
    true = video[first : first + len(predicted)]
    guess = (predicted[: len(true)].detach().cpu().to(torch.float64).clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2
    return float((guess - true).square().mean()), float((video[first - 1] - true).square().mean())


def linear_extrapolation(pixels: np.ndarray | Tensor, first: int, frames: int) -> Tensor:
    """What follows where every pixel goes on as it changed last: ``last + k * (last - before)`` for k = 1, 2, ...

    Args:
        pixels: a video from its beginning, uint8 ``[N, H, W, 3]``.
        first: number of the first frame to guess, 1..N; with 1 there is no change to go by, and frame 0 is repeated.
        frames: how many to guess.

    Returns:
        float64 ``[frames, H, W, 3]`` in [0, 1], clipped.
    """
    video = torch.as_tensor(pixels)[max(0, first - 2) : first].to(torch.float64) / 255
    steps = torch.arange(1, frames + 1, dtype=torch.float64).view(-1, 1, 1, 1)
    return (video[-1] + steps * (video[-1] - video[0])).clamp(0, 1)


def linear_error(pixels: np.ndarray | Tensor, first: int, frames: int) -> float:
    """Mean squared error of `linear_extrapolation` as `squared_errors` measures it: of the `frames` frames from `first`
    on, or of those that the video has.
    """
    true = torch.as_tensor(pixels)[first : first + frames].to(torch.float64) / 255
    return float((linear_extrapolation(pixels, first, len(true)) - true).square().mean())


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of an error in [0, 1] pixel units."""
    return -10 * math.log10(mse) if mse else math.inf
