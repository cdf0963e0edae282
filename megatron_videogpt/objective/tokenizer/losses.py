"""Losses of a tokenizer and its adversary, each a number for every video: closed forms, all in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = 4
"""Of the pyramid: as they are, and halved so many times less one."""


def per_video(values: Tensor) -> Tensor:
    """The mean of each video, ``[b, ...]`` -> ``[b]``."""
    return values.flatten(1).mean(1)


def hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Of discriminators: half of relu(1 - real) + relu(1 + fake), the mean over patches, summed over discriminators.

    real, fake: of each discriminator logits ``[b, patches]``.
    """
    return torch.stack([per_video(F.relu(1 - r) + F.relu(1 + f)) / 2 for r, f in zip(real, fake, strict=True)]).sum(0)


def fooling(fake: Sequence[Tensor]) -> Tensor:
    """Of who is to fool them: minus the mean logit of each discriminator, summed over discriminators."""
    return -torch.stack([per_video(logits) for logits in fake]).sum(0)


def pyramid(made: Tensor, real: Tensor) -> Tensor:
    """How far edges lie apart: of each of `SCALES` scales (halved by means of 2x2 pixels) the mean absolute error of
    the differences between neighbours, across and down, averaged over both and over the scales that have any.

    This project's choice, for machines without LPIPS' weights: what a blurred picture lacks counts, where it lies
    counts at every scale, and there is nothing to download.  It is no measure of how pictures look to people.

    made, real: ``[b, 3, F, H, W]``.
    """
    error = (made.float() - real.float()).transpose(1, 2)
    total, count = torch.zeros(len(error), device=error.device), 0
    frames = error.flatten(0, 1)
    for _ in range(SCALES):
        if min(frames.shape[-2:]) < 2:
            break
        pair = [part.unflatten(0, error.shape[:2]).abs() for part in (frames.diff(dim=-1), frames.diff(dim=-2))]
        total, count = total + (per_video(pair[0]) + per_video(pair[1])) / 2, count + 1
        frames = F.avg_pool2d(frames, 2)
    return total / max(1, count)


def decibels(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each video in dB, one mean squared error over all of it, of `made` clamped to
    [0, 1]; at most 100.
    """
    return -10 * per_video((made.float().clamp(0, 1) - real).square()).clamp(min=1e-10).log10()


def level_use(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """How evenly a video's codes use their levels, ``[b]``: of each channel the perplexity of its levels over how many
    there are (1: all equally often), the mean over channels.

    digits: int64 ``[b, d, ...]`` from 0 on.
    """
    shares = []
    for channel, count in enumerate(levels):
        share = F.one_hot(digits[:, channel].flatten(1), count).float().mean(1)
        shares.append(torch.special.entr(share).sum(1).exp() / count)
    return torch.stack(shares).mean(0)


def distinct(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """How many different codes a video has, float32 ``[b]``; the host does not wait for it.

    digits: as for `level_use`.
    """
    ids, factor = torch.zeros_like(digits[:, 0]), 1
    for channel, count in enumerate(levels):
        ids, factor = ids + digits[:, channel] * factor, factor * count
    hit = torch.zeros(len(ids), factor, dtype=torch.bool, device=ids.device)
    return hit.scatter_(1, ids.flatten(1), True).sum(1).float()
