"""What a training sample is: which frames, cut into which clips.  A pure function of (split, seed, epoch, index).

``data.frames`` counts what the model sees, latent frames: with a codec of temporal stride s, a sample takes
1 + s * (frames - 1) frames of the video.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from torch import Tensor

from megatron_videogpt.config.schema import DataConfig


@dataclass(frozen=True)
class Sample:
    """One encoded clip sequence, ready for the objective."""

    key: int  # 63 bits; seeds the objective's noise
    name: str  # video file or scene
    mean: Tensor  # float32 [N, C, h, w], scaled latents
    logvar: Tensor | None  # float32 [N, C, h, w]; None when the codec is deterministic
    clips: tuple[int, ...]  # latent frames of each clip, in order; they add up to N
    pixels: np.ndarray | None = None  # uint8 [F, H, W, 3], only when asked for


@dataclass(frozen=True)
class SamplePlan:
    """A sample before any picture is read."""

    key: int
    item: int  # number of the video in its split; -1 for generated scenes
    frames: tuple[int, ...]  # frame numbers in the video, or simulated frames
    interval: int
    clips: tuple[int, ...]


def sample_key(seed: int, epoch: int, index: int, split: str = "train") -> int:
    """63-bit identity of a sample, the same on every rank and machine."""
    return _hash63(f"{split}/{seed}/{epoch}/{index}")


def derived_key(key: int, purpose: str) -> int:
    """63-bit key for one more use of a sample's randomness, independent of its other uses."""
    return _hash63(f"{key}/{purpose}")


def _hash63(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def video_span(frames: int, interval: int) -> int:
    """Length in video frames of ``frames`` frames ``interval`` apart."""
    return (frames - 1) * interval + 1


def plan_sample(config: DataConfig, temporal_stride: int, key: int, item: int, available: int | None) -> SamplePlan:
    """Draw interval, start and clip lengths (reference README, section 11).

    Interval uniform on lo..min(hi, what the video allows), start uniform, number of clips K uniform on lo..min(hi, frames),
    then K-1 distinct cut points, uniform.

    Args:
        config: frames, frame_interval and clips.
        temporal_stride: of the codec.
        key: from `sample_key`; all randomness comes from it.
        item: video number, passed through.
        available: frames of the video; None when there is no end (generated scenes).

    Raises:
        ValueError: the video is too short.
    """
    rng = random.Random(derived_key(key, "plan"))
    count = 1 + temporal_stride * (config.frames - 1)
    low, high = config.frame_interval
    if available is not None:
        if video_span(count, low) > available:
            raise ValueError(f"too short: {available} frames, a sample needs {video_span(count, low)}")
        high = min(high, (available - 1) // (count - 1)) if count > 1 else high
    interval = _uniform(rng, low, high)
    start = 0 if available is None else _uniform(rng, 0, available - video_span(count, interval))
    frames = tuple(start + interval * i for i in range(count))
    return SamplePlan(key, item, frames, interval, split_clips(rng, config.frames, config.clips))


def split_clips(rng: random.Random, frames: int, limits: tuple[int, int]) -> tuple[int, ...]:
    """Clip lengths: K uniform on limits (at most ``frames``), K-1 distinct cut points uniform among frames-1 places."""
    count = _uniform(rng, min(limits[0], frames), min(limits[1], frames))
    places = list(range(1, frames))
    for i in range(count - 1):  # partial Fisher-Yates; random.sample may change between Python versions
        j = _uniform(rng, i, frames - 2)
        places[i], places[j] = places[j], places[i]
    cuts = [0, *sorted(places[: count - 1]), frames]
    return tuple(b - a for a, b in zip(cuts, cuts[1:]))


def _uniform(rng: random.Random, low: int, high: int) -> int:
    """Integer from low..high, both included."""
    return low + int(rng.random() * (high - low + 1))
