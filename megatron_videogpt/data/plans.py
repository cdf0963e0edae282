"""What a training sample is: which frames, cut into which clips.  A pure function of (split, seed, epoch, index).

``data.frames`` counts what the model sees, latent frames: with a codec of temporal stride s, a sample takes
1 + s * (frames - 1) frames of the video.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np
from torch import Tensor

from ..condition.options import NONE, ConditionConfig
from ..config.schema_data import DataConfig
from .order import GOLDEN, splitmix64

PLAN_STREAM = 0x706C616E  # keeps these draws apart from other uses of a key
INTERVAL, START, CLIPS, CUTS = range(4)  # counters of a sample's draws; each place for a cut has its own, from CUTS on
GIVEN, DROPPED = range(1 << 32, (1 << 32) + 2)


@dataclass(frozen=True)
class Sample:
    """One encoded clip sequence, ready for the objective."""

    key: int  # 63 bits; seeds the objective's noise
    name: str  # video file or scene
    mean: Tensor  # float32 [N, C, h, w], scaled latents
    logvar: Tensor | None  # float32 [N, C, h, w]; None when the codec is deterministic
    clips: tuple[int, ...]  # latent frames of each clip, in order; they add up to N
    pixels: np.ndarray | None = None  # uint8 [F, H, W, 3], only when asked for
    scored: bool = True  # False: a blank that holds the place of a sample that could not be read
    number: int = -1  # global sample number; -1 outside training
    label: str = ""  # the data's name of its class, "" where nothing says it
    caption: str = ""  # what the data says of it, only while it is read
    condition: Tensor | None = None  # what stands before it: int64 [1], a class; int64 [m] or float32 [T, E], a text
    given: int = 0  # leading frames that are given and not predicted: clips[0] where it is not 0
    dropped: bool = False  # to be trained without its condition; what that means is the objective's affair
    encode_time: float = 0.0  # seconds that encoding took, where it was encoded alone
    stratum: tuple[int, int] | None = None  # of a held-out one: its place among so many that share out noise levels


@dataclass(frozen=True)
class SamplePlan:
    """A sample before any picture is read."""

    number: int  # global sample number
    key: int
    dataset: int  # number of the data set in a mixture, else 0
    item: int  # number of the video in its split; -1 for generated scenes
    frames: tuple[int, ...]  # frame numbers in the video, or simulated frames
    interval: int
    clips: tuple[int, ...]  # latent frames of each clip
    size: tuple[int, int]  # (height, width) in pixels, after resizing and cropping
    prefix: int = 0  # tokens of its condition, dropped or not; of a text that was not counted, the most it may have
    given: int = 0  # leading latent frames that are given: clips[0] where it is not 0
    dropped: bool = False  # see `Sample`


@dataclass(frozen=True, eq=False)
class Plans:
    """Plans of n samples, as arrays; ``plans[i]`` is the `SamplePlan` of one.

    number, key, dataset, item: int64 [n], as in `SamplePlan`; start, interval: int64 [n], first video frame and step;
    count: int64 [n], latent frames; cuts: bool [n, N - 1], whether a clip ends after latent frame j; height, width:
    int64 [n] in pixels; stride: int64 [n], video frames per latent frame; given, dropped, prefix: int64 [n], bool [n],
    int64 [n], as in `SamplePlan`.
    """

    number: np.ndarray
    key: np.ndarray
    dataset: np.ndarray
    item: np.ndarray
    start: np.ndarray
    interval: np.ndarray
    count: np.ndarray
    cuts: np.ndarray
    height: np.ndarray
    width: np.ndarray
    stride: np.ndarray
    given: np.ndarray
    dropped: np.ndarray
    prefix: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, position: int) -> SamplePlan:
        count, first, step = int(self.count[position]), int(self.start[position]), int(self.interval[position])
        places = [0, *(np.flatnonzero(self.cuts[position]) + 1).tolist(), count]
        frames = range(first, first + step * (1 + int(self.stride[position]) * (count - 1)), step)
        number, key, dataset, item, height, width = (
            int(values[position])
            for values in (self.number, self.key, self.dataset, self.item, self.height, self.width)
        )
        return SamplePlan(
            number,
            key,
            dataset,
            item,
            tuple(frames),
            step,
            tuple(b - a for a, b in zip(places, places[1:])),
            (height, width),
            int(self.prefix[position]),
            int(self.given[position]),
            bool(self.dropped[position]),
        )

    @property
    def kept(self) -> np.ndarray:
        """int64 [n]: latent frames before the last clip."""
        places = np.arange(1, self.cuts.shape[1] + 1)
        return (self.cuts * places).max(axis=1, initial=0)

    @property
    def squares(self) -> np.ndarray:
        """int64 [n]: sum over clips of their latent frames squared."""
        ends = np.pad(self.cuts, ((0, 0), (0, 1)))
        ends[np.arange(len(self)), self.count - 1] = True
        rows, places = np.nonzero(ends)
        first = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
        lengths = places - np.where(first, -1, np.r_[0, places[:-1]][: len(rows)])
        return np.bincount(rows, lengths * lengths, len(self)).astype(np.int64)

    def take(self, positions: np.ndarray | Sequence[int]) -> Plans:
        """The plans at these positions, in their order."""
        chosen = np.asarray(positions, dtype=np.int64)
        return Plans(*(getattr(self, item.name)[chosen] for item in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Plans]) -> Plans:
        """One after another; at least one part."""
        places = max(part.cuts.shape[1] for part in parts)
        columns = {item.name: [getattr(part, item.name) for part in parts] for item in fields(Plans)}
        columns["cuts"] = [np.pad(cuts, ((0, 0), (0, places - cuts.shape[1]))) for cuts in columns["cuts"]]
        return Plans(**{name: np.concatenate(values) for name, values in columns.items()})


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


def shortest_video(config: DataConfig, temporal_stride: int) -> int:
    """Frames that a video must have to give a sample."""
    frames = min(config.frames, config.min_frames or config.frames)
    return video_span(1 + temporal_stride * (frames - 1), config.frame_interval[0])


def plan_samples(
    config: DataConfig,
    temporal_stride: int,
    keys: np.ndarray | Sequence[int],
    numbers: np.ndarray | Sequence[int],
    datasets: np.ndarray | Sequence[int] | int,
    items: np.ndarray | Sequence[int] | int,
    available: np.ndarray | Sequence[int] | None,
    sizes: tuple[np.ndarray | int, np.ndarray | int],
    condition: ConditionConfig = NONE,
    prefix: np.ndarray | int = 0,
) -> Plans:
    """Draw interval, start and clip lengths of n samples (reference README, section 11).

    Interval uniform on lo..min(hi, what the video allows), start uniform, number of given frames uniform (at most
    all but one), number of clips K uniform on lo..min(hi, frames that are not given), then K-1 distinct cut points,
    uniform. Uniform on 0..m-1 means to within a share m / 2**32. A video too short for `data.frames` at the
    smallest interval gives as many frames as it has there, if `data.min_frames` allows.

    Args:
        config: frames, min_frames, frame_interval and clips.
        temporal_stride: of the codec.
        keys: int64 or uint64 [n], from `sample_key`; all randomness comes from them.
        numbers, datasets, items: [n] (or one for all), passed through.
        available: [n] frames of the videos; None when there is no end (generated scenes).
        sizes: heights and widths, [n] each (or one for all), in pixels after resizing.
        condition: frames given, and the share of dropped conditions.
        prefix: tokens of each sample's condition, [n] (or one for all).

    Raises:
        ValueError: a video is too short.
    """
    seeds = splitmix64(np.array(keys, dtype=np.int64).astype(np.uint64) ^ np.uint64(PLAN_STREAM))
    n = len(seeds)
    low, high = config.frame_interval
    if available is None:
        counts, highest, room = np.full(n, config.frames), np.full(n, high), np.ones(n, dtype=np.int64)
    else:
        room = np.array(available, dtype=np.int64)
        counts = np.minimum(config.frames, (room - 1) // (low * temporal_stride) + 1)
        if n and room.min() < shortest_video(config, temporal_stride):
            raise ValueError(
                f"too short: {room.min()} frames, a sample needs {shortest_video(config, temporal_stride)}"
            )
        highest = np.minimum(high, (room - 1) // np.maximum(1, temporal_stride * (counts - 1)))
        highest = np.where(counts > 1, highest, high)
    intervals = _uniform(seeds, INTERVAL, np.int64(low), highest)
    spans = temporal_stride * (counts - 1) * intervals + 1
    starts = _uniform(seeds, START, np.int64(0), room - spans) if available is not None else np.zeros(n, dtype=np.int64)
    given = _uniform(seeds, GIVEN, *(np.minimum(bound, counts - 1) for bound in condition.frames))
    free = counts - given
    clips = _uniform(seeds, CLIPS, np.minimum(config.clips[0], free), np.minimum(config.clips[1], free))
    cuts = _cuts(seeds, counts, clips, config.frames, given)
    passed = (
        np.broadcast_to(np.array(values, dtype=np.int64), (n,)) for values in (numbers, datasets, items, *sizes, prefix)
    )
    number, dataset, item, height, width, tokens = passed
    stride = np.full(n, temporal_stride, dtype=np.int64)
    dropped = (_draw(seeds, DROPPED) >> np.uint64(32)) < np.uint64(condition.dropout * 2**32)
    dropped &= (tokens > 0) | (given > 0)
    key = np.array(keys, dtype=np.int64)
    return Plans(
        number, key, dataset, item, starts, intervals, counts, cuts, height, width, stride, given, dropped, tokens
    )


def _draw(seeds: np.ndarray, counter: int | np.ndarray) -> np.ndarray:
    """uint64: splitmix64's output number ``counter`` for each seed, broadcast."""
    return splitmix64(seeds + np.asarray(counter, dtype=np.uint64) * np.uint64(GOLDEN))


def _uniform(seeds: np.ndarray, counter: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """int64 [n]: one draw each from low..high, both included, which are less than 2**31 apart."""
    return low + ((_draw(seeds, counter) >> np.uint64(32)).astype(np.int64) * (high - low + 1) >> 32)


def _cuts(seeds: np.ndarray, counts: np.ndarray, clips: np.ndarray, frames: int, given: np.ndarray) -> np.ndarray:
    """bool [n, frames - 1]: the end of the given frames, and clips - 1 places behind it among the first counts - 1,
    those with the smallest random numbers.
    """
    places = np.arange(frames - 1, dtype=np.uint64)
    bits = np.uint64(frames.bit_length())
    # The place in the low bits makes the numbers of a sample distinct.
    ranks = _draw(seeds[:, None], places[None, :] + np.uint64(CUTS)) >> bits << bits | places
    ranks[
        (places >= (counts[:, None] - 1).astype(np.uint64)) | (places < given[:, None].astype(np.uint64))
    ] = ~np.uint64(0)
    if frames == 1:
        return np.zeros((len(seeds), 0), dtype=bool)
    ordered = np.sort(ranks, axis=1)
    last = ordered[np.arange(len(seeds)), np.maximum(clips - 2, 0)]
    return (ranks <= last[:, None]) & (clips > 1)[:, None] | (places + np.uint64(1) == given[:, None].astype(np.uint64))


def split_clips(rng: random.Random, frames: int, limits: tuple[int, int]) -> tuple[int, ...]:
    """Clip lengths: K uniform on limits (at most ``frames``), K-1 distinct cut points uniform among frames-1 places."""
    count = _uniform_of(rng, min(limits[0], frames), min(limits[1], frames))
    places = list(range(1, frames))
    for i in range(count - 1):  # partial Fisher-Yates; random.sample may change between Python versions
        j = _uniform_of(rng, i, frames - 2)
        places[i], places[j] = places[j], places[i]
    cuts = [0, *sorted(places[: count - 1]), frames]
    return tuple(b - a for a, b in zip(cuts, cuts[1:]))


def _uniform_of(rng: random.Random, low: int, high: int) -> int:
    """Integer from low..high, both included."""
    return low + int(rng.random() * (high - low + 1))
