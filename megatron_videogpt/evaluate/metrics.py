"""Measures between videos and between sets of videos: FVD's preparation of frames, Fréchet distance, PSNR."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UserError


def resize_crop(video: Tensor, side: int, normalize: bool = False) -> Tensor:
    """Frames as the network of FVD takes them: the shorter side resized to ``side`` (bilinear, no antialiasing, pixel
    centres at halves, the other side rounded up), then the middle cut out.

    Args:
        video: float [C, F, H, W] in [0, 1].
        side: pixels of the square; 224 for I3D.
        normalize: to [-1, 1], as I3D wants it.

    Returns:
        float [C, F, side, side].
    """
    height, width = video.shape[-2:]
    scale = side / min(height, width)
    size = (side, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), side)
    video = interpolate(video, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    video = video[..., top : top + side, left : left + side]
    return (video - 0.5) * 2 if normalize else video


def frechet_distance(fake: Tensor, real: Tensor) -> float:
    """Fréchet distance of two sets of features, each taken for a normal distribution; FVD where they are I3D's.

    Args:
        fake, real: [n, d], a row a video; the covariances divide by n - 1, and numbers are float64 throughout.

    Raises:
        UserError: fewer than two rows, another width, or numbers that are not finite.
    """
    for name, rows in (("fake", fake), ("real", real)):
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != fake.shape[-1]:
            raise UserError(
                f"{name} features of shape {list(rows.shape)}: expected [n, d] with n from 2 on and the same d"
            )
        if not rows.isfinite().all():
            raise UserError(f"{name} features hold numbers that are not finite: the network that made them overflowed")
    fake, real = fake.double(), real.double()
    distance = (fake.mean(0) - real.mean(0)).square().sum()
    # With covariances F'F and R'R, the trace of sqrt(F'F R'R) is the sum of the singular values of F R'.  So no root of
    # a matrix is needed, which is inexact or complex where there are fewer videos than features.
    of_fake, of_real = (
        torch.linalg.qr((rows - rows.mean(0)) / math.sqrt(len(rows) - 1), mode="r").R for rows in (fake, real)
    )
    shared = torch.linalg.svdvals(of_fake @ of_real.T).sum()
    return float(distance + of_fake.square().sum() + of_real.square().sum() - 2 * shared)


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each video in dB, float32 [B]: 20 log10(255 / sqrt(mse)), one mean squared error
    over a whole video on a scale from 0 to 255, without rounding; infinite where both are equal.

    Args:
        one, other: [B, ...] of the same shape, in [0, 1].
    """
    if one.shape != other.shape or one.ndim < 2:
        raise UserError(f"videos of shapes {list(one.shape)} and {list(other.shape)}: expected the same [B, ...]")
    error = (255 * (one.double() - other.double())).square().flatten(1).mean(1)
    return (20 * torch.log10(255 / error.sqrt())).float()
