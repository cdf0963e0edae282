"""Numbered samples of one data set, of the physics generator, or of a mixture.

A split maps global sample numbers to plans, vectorised and from the index alone (the same on every rank), and a plan to
the job that reads it.  Number g is sample ``g % len`` of epoch ``g // len``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..condition.captions import text_of
from ..config.schema_data import DataConfig
from .conditioning import UNCONDITIONAL, Conditioning
from .jobs import Job, PhysicsJob, scene_key
from .order import permute
from .plans import Plans, SamplePlan, plan_samples, sample_key, video_span
from .sources.facts import describe_scene

SAMPLING = 2  # version of how samples are drawn; part of every fingerprint
BLOCK = 1 << 20  # entries looked at together: bounds the memory that 70 million of them take


Longest = Callable[[np.ndarray, tuple[np.ndarray, np.ndarray]], np.ndarray]
"""`longest(frames, (heights, widths))`: most tokens of a sample of so many frames of that size in pixels; int64 [n]
all.
"""


class Split(Protocol):
    """Numbered samples; ``len`` is the samples of an epoch."""

    @property
    def name(self) -> str:
        """train or validation."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of the data and of every option that decides what the samples are; not of where the data
        lies.
        """
        ...

    def __len__(self) -> int: ...

    def plans(self, seed: int, numbers: Sequence[int] | np.ndarray) -> Plans:
        """Plans of the samples with these global numbers, in this order."""
        ...

    def job(self, plan: SamplePlan) -> Job:
        """What reads a sample."""
        ...

    def largest_tokens(self, longest: Longest) -> int:
        """Tokens of the longest sample that can be drawn."""
        ...


class Collection(Protocol):
    """The videos of one data set."""

    @property
    def entries(self) -> np.ndarray:
        """Structured array with (at least) width, height and frames of every video."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of what the data set holds, not of where."""
        ...

    def name(self, entry: int) -> str:
        """Of a video, for people."""
        ...

    def holdout_hashes(self, entries: np.ndarray) -> np.ndarray:
        """uint64 hashes that decide who is held out: uniform, and independent of where the data lies."""
        ...

    def job(self, plan: SamplePlan, entry: int) -> Job:
        """What reads frames ``plan.frames`` of a video."""
        ...

    def text_tokens(self, entries: np.ndarray) -> np.ndarray | None:
        """int64 [n]: tokens of the text features that the data set has of these videos; None where it has none."""
        ...


@dataclass(frozen=True, eq=False)
class PhysicsSplit:
    """Generated scenes: new ones in every epoch, those of validation disjoint from those of training."""

    name: str
    config: DataConfig
    temporal_stride: int
    conditioning: Conditioning = UNCONDITIONAL

    def __len__(self) -> int:
        return self.config.physics.epoch_scenes

    @cached_property
    def fingerprint(self) -> str:
        """See `Split`."""
        physics = self.config.physics
        data = {
            "scenes": physics.scenes,
            "difficulty": physics.difficulty,
            "size": physics.size,
            "fps": physics.fps,
            "epoch_scenes": physics.epoch_scenes,
        }
        return digest({"name": self.name, "physics": data, **_drawing(self)})

    def plans(self, seed: int, numbers: Sequence[int] | np.ndarray) -> Plans:
        """See `Split`."""
        given = np.asarray(numbers, np.int64)
        epochs, places = np.divmod(given, len(self))
        side, options = self.config.physics.size, self.conditioning.options
        keys = _keys(seed, epochs, places, self.name)
        prefix = self._prefix(keys)
        return plan_samples(self.config, self.temporal_stride, keys, given, 0, -1, None, (side, side), options, prefix)

    def _prefix(self, keys: np.ndarray) -> np.ndarray | int:
        """Tokens of each scene's condition."""
        encoder, physics = self.conditioning.encoder, self.config.physics
        if encoder is None:
            return self.conditioning.options.most_tokens
        scenes = [describe_scene(physics, scene_key(key)) for key in keys.tolist()]
        return np.array(encoder.count([text_of(self.conditioning.options, one.name, one.caption) for one in scenes]))

    def job(self, plan: SamplePlan) -> Job:
        """See `Split`."""
        return PhysicsJob(plan, self.config.physics, self.conditioning.wanted)

    def largest_tokens(self, longest: Longest) -> int:
        """See `Split`."""
        side = self.config.physics.size
        return int(longest(np.array([self.config.frames]), (np.array([side]), np.array([side])))[0])


@dataclass(frozen=True, eq=False)
class VideoSplit:
    """Videos of one data set.  An epoch visits each max(1, frames // sample span) times, in a permuted order.

    items: int32 or int64 numbers of its videos in ``collection``, ascending; dataset: its number in a mixture, else 0;
    part: (first frame, frames) when there is one video and the split has only a part of it.
    """

    name: str
    config: DataConfig
    temporal_stride: int
    collection: Collection
    items: np.ndarray
    dataset: int = 0
    part: tuple[int, int] | None = None
    conditioning: Conditioning = UNCONDITIONAL

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def fingerprint(self) -> str:
        """See `Split`."""
        options = ("min_side", "max_aspect", "longest_side", "size_multiple", "validation_fraction")
        description = {
            "name": self.name,
            "dataset": self.dataset,
            "data": self.collection.fingerprint,
            "videos": len(self.items),
            "samples": len(self),
        }
        return digest(
            {
                **description,
                **_drawing(self),
                **{name: getattr(self.config, name) for name in options},
            }
        )

    def plans(self, seed: int, numbers: Sequence[int] | np.ndarray) -> Plans:
        """See `Split`."""
        given = np.asarray(numbers, np.int64)
        epochs, places = np.divmod(given, len(self))
        split = self.name if not self.dataset else f"{self.name}/{self.dataset}"
        slots = np.empty(len(given), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            slots[here] = permute(places[here], len(self), sample_key(seed, int(epoch), -1, split))
        items = np.searchsorted(self._ends, slots, side="right")
        found = self.collection.entries[self.items[items]]
        sizes = resized_sizes(found["width"], found["height"], self.config.longest_side, self.config.size_multiple)
        keys, available = _keys(seed, epochs, places, split), self._available(found)
        options, prefix = self.conditioning.options, self._prefix(self.items[items])
        return plan_samples(
            self.config, self.temporal_stride, keys, given, self.dataset, items, available, sizes, options, prefix
        )

    def job(self, plan: SamplePlan) -> Job:
        """See `Split`."""
        if self.part is not None:
            plan = replace(plan, frames=tuple(self.part[0] + frame for frame in plan.frames))
        return self.collection.job(plan, int(self.items[plan.item]))

    def _prefix(self, entries: np.ndarray) -> np.ndarray | int:
        """Tokens of each video's condition."""
        options = self.conditioning.options
        counted = self.collection.text_tokens(entries) if options.kind == "text" else None
        return options.most_tokens if counted is None else counted

    def largest_tokens(self, longest: Longest) -> int:
        """See `Split`."""
        largest = 0
        for block in self._blocks():
            sizes = resized_sizes(block["width"], block["height"], self.config.longest_side, self.config.size_multiple)
            steps = (self._available(block) - 1) // (self.temporal_stride * self.config.frame_interval[0])
            frames = np.minimum(self.config.frames, 1 + steps)
            largest = max(largest, int(longest(frames, sizes).max()))
        return largest

    @cached_property
    def _ends(self) -> np.ndarray:
        """Cumulative visits: video i has the samples _ends[i-1] .. _ends[i]-1 of an unpermuted epoch."""
        span = video_span(1 + self.temporal_stride * (self.config.frames - 1), self.config.frame_interval[0])
        return np.cumsum(
            np.concatenate([np.maximum(1, self._available(block) // span) for block in self._blocks()]), dtype=np.int64
        )

    def _blocks(self) -> Iterator[np.ndarray]:
        return (self.collection.entries[self.items[i : i + BLOCK]] for i in range(0, len(self.items), BLOCK))

    def _available(self, entries: np.ndarray) -> np.ndarray:
        frames = entries["frames"].astype(np.int64)
        return frames if self.part is None else np.full_like(frames, self.part[1])


def resized_sizes(
    width: np.ndarray, height: np.ndarray, longest_side: int, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
    """(heights, widths), int64 [n] each, that `decode.resized_shape` gives for each video; 0 where a side would be
    empty.
    """
    scale = longest_side / np.maximum(1, np.maximum(width, height))
    return np.rint(height * scale).astype(np.int64) // multiple * multiple, np.rint(width * scale).astype(
        np.int64
    ) // multiple * multiple


def _drawing(split: PhysicsSplit | VideoSplit) -> dict[str, Any]:
    """What decides how a sample is drawn from a video."""
    options = ("frames", "min_frames", "frame_interval", "clips")
    return {
        "sampling": SAMPLING,
        "temporal_stride": split.temporal_stride,
        **{name: getattr(split.config, name) for name in options},
        **split.conditioning.description,
    }


def _keys(seed: int, epochs: np.ndarray, places: np.ndarray, split: str) -> np.ndarray:
    keys = [sample_key(seed, epoch, place, split) for epoch, place in zip(epochs.tolist(), places.tolist())]
    return np.array(keys, np.int64)


def digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
