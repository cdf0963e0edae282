"""Videos in a row: those of one size together, and where in each the piece lies that is learned from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...sequence.row import Context, Row
from ..noise import uniform

VIDEOS, MEMBERS, CORNERS, FAKE, REAL, LEARNS = "videos", "members", "corners", "fake", "real", "adversary"
"""Beginnings of names among a row's contexts, a number behind them; the last alone: the discriminators learn."""


class Clips(NamedTuple):
    """Videos of one size.  videos: float32 ``[b, 3, F, H, W]`` in [0, 1]; members: int64 ``[b]``, which of the row's
    videos they are; corners: int64 ``[b, 2]``, first row and column of the pieces.
    """

    videos: Tensor
    members: Tensor
    corners: Tensor


def corner(video: Tensor, side: int, moving: float, key: int) -> list[int]:
    """First row and column of a piece of a video ``[3, F, H, W]``, drawn from its key: with a chance of `moving` one
    with a pixel in it that changes; [0, 0] for a `side` of 0.
    """
    if not side:
        return [0, 0]
    draws = uniform(key, "crop", 4).tolist()
    room = [max(0, size - side) for size in video.shape[2:]]
    if draws[0] < moving:
        changed = (video[:, 1:] != video[:, :1]).flatten(0, 1).any(0).nonzero()
        if len(changed):
            place = changed[int(draws[1] * len(changed))].tolist()
            first = [at - int(draw * side) for at, draw in zip(place, draws[2:])]
            return [min(max(0, at), most) for at, most in zip(first, room)]
    return [int(draw * (most + 1)) for draw, most in zip(draws[2:], room)]


def grouped(videos: list[Tensor], corners: list[list[int]]) -> dict[str, Context]:
    """Contexts of a row with these videos ``[3, F, H, W]``."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, video in enumerate(videos):
        found.setdefault(tuple(video.shape), []).append(number)
    contexts: dict[str, Context] = {}
    for place, numbers in enumerate(found.values()):
        contexts[f"{VIDEOS} {place}"] = Context(torch.stack([videos[number] for number in numbers]))
        contexts[f"{MEMBERS} {place}"] = Context(torch.tensor(numbers))
        contexts[f"{CORNERS} {place}"] = Context(torch.tensor([corners[number] for number in numbers]))
    return contexts


def clips_of(row: Row) -> Iterator[Clips]:
    """The videos of a row again, size by size."""
    place = 0
    while f"{VIDEOS} {place}" in row.context:
        parts = (row.context[f"{name} {place}"].value for name in (VIDEOS, MEMBERS, CORNERS))
        yield Clips(*parts)
        place += 1


def pieces(clips: Clips, side: int) -> Tensor:
    """The piece of each video that is learned from; a `side` of 0 takes all."""
    video = clips.videos
    height, width = (min(side or size, size) for size in video.shape[3:])
    if (height, width) == video.shape[3:]:
        return video
    # By indices on the device: the host does not wait for the corners.
    rows = clips.corners[:, :1] + torch.arange(height, device=video.device)
    columns = clips.corners[:, 1:] + torch.arange(width, device=video.device)
    batch = torch.arange(len(video), device=video.device)
    picked = video.permute(0, 3, 4, 1, 2)[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 4, 1, 2)
