"""Frames to latents: a sample at once, or call by call, which several ranks may make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec.base import Codec, call_size
from .plans import Sample
from .video.pictures import to_model_range, to_pixels

Video = tuple[int, int, int]
"""Frames, height and width in pixels."""


def encode(sample: Sample, codec: Codec, keep_pixels: bool) -> Sample:
    """A sample as read, with its latents (arrays on the CPU, float32), and with pixels only if these are kept."""
    if sample.pixels is None:
        if not keep_pixels:
            return sample
        mean = torch.from_numpy(np.asarray(sample.mean))
        return replace(sample, pixels=to_pixels(codec.decode(mean.to(codec.device))))
    started = time.perf_counter()
    mean, logvar = codec.encode(to_model_range(sample.pixels, codec.device))
    arrays: list[Any] = [None if part is None else part.cpu().numpy() for part in (mean, logvar)]
    pixels, seconds = sample.pixels if keep_pixels else None, time.perf_counter() - started
    return replace(sample, mean=arrays[0], logvar=arrays[1], pixels=pixels, encode_time=seconds)


def is_encoded(sample: Sample) -> bool:
    """Whether it has latents, and not frames alone."""
    return sample.pixels is None or len(sample.mean) > 0


def latent_shape(codec: Codec, video: Video) -> tuple[int, int, int, int]:
    """Of what a codec makes of a video, [f, C, h, w]."""
    frames, height, width = video
    stride = codec.spatial_stride
    return 1 + (frames - 1) // codec.temporal_stride, codec.channels, height // stride, width // stride


@dataclass(frozen=True)
class Call:
    """One call of a codec: frames of one video, and what becomes of them.

    video: its number among those that are to be encoded; first: the first of its frames; frames: how many; size: how
    many the codec gets, the last one again and again; shape: [f, C, h, w] of the latents that count.
    """

    video: int
    first: int
    frames: int
    size: int
    height: int
    width: int
    shape: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        """Of the frames that the codec gets, by which calls are dealt."""
        return self.size * self.height * self.width

    @property
    def bytes(self) -> int:
        """Of the frames that travel."""
        return 3 * self.frames * self.height * self.width


def calls_of(videos: Sequence[Video], codec: Codec) -> list[Call]:
    """The calls that encode these videos, whoever makes them: the same that `Codec.encode` makes of each alone."""
    calls = []
    for number, (frames, height, width) in enumerate(videos):
        size = call_size(codec, frames)
        for first in range(0, frames, size):
            count = min(size, frames - first)
            shape = latent_shape(codec, (count, height, width))
            calls.append(Call(number, first, count, size, height, width, shape))
    return calls


def deal_calls(calls: Sequence[Call], ranks: int) -> list[list[Call]]:
    """Of each rank the calls that it makes, in their order: the largest ones first to whoever has least to do."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(calls)), key=lambda place: -calls[place].pixels):
        rank = loads.index(min(loads))
        shares[rank].append(place)
        loads[rank] += calls[place].pixels
    return [[calls[place] for place in sorted(share)] for share in shares]


def pack_frames(calls: Sequence[Call], videos: Sequence[np.ndarray]) -> Tensor:
    """uint8 [bytes]: the frames of some calls, one after another; videos: uint8 [F, H, W, 3] each."""
    parts = [videos[call.video][call.first : call.first + call.frames].reshape(-1) for call in calls]
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.uint8))


@torch.no_grad()
def encode_calls(calls: Sequence[Call], frames: Tensor, codec: Codec) -> list[list[Tensor]]:
    """Of each call the mean, and the log-variance where the codec has one: float32 of its shape, on the CPU.

    frames: as `pack_frames` gives them.  ValueError where the codec gives another shape.
    """
    made = []
    for call, flat in zip(calls, frames.split([call.bytes for call in calls])):
        known = flat.view(call.frames, call.height, call.width, 3)
        padded = torch.cat([known, known[-1:].expand(call.size - call.frames, -1, -1, -1)])
        latents = [part for part in codec.encode(to_model_range(padded.numpy(), codec.device)) if part is not None]
        latents = [part[: call.shape[0]].cpu() for part in latents]
        for part in latents:
            if tuple(part.shape) != call.shape:
                size = f"{call.size} frames of {call.height}x{call.width}"
                raise ValueError(f"codec {codec.name}: {size} give {list(part.shape)}, expected {list(call.shape)}")
        made.append(latents)
    return made


def join_calls(made: Sequence[tuple[Call, list[Tensor]]], videos: int) -> list[list[Tensor]]:
    """Of each of so many videos the mean, and the log-variance where the codec has one, from all of its calls, in any
    order.
    """
    found: list[list[list[Tensor]]] = [[] for _ in range(videos)]
    for call, latents in sorted(made, key=lambda one: one[0].first):
        found[call.video].append(latents)
    return [[torch.cat(pieces) for pieces in zip(*calls)] for calls in found]
