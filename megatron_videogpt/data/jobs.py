"""One sample's reading, as a small picklable object that a worker process runs: everything it needs is in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..config.schema_data import DataConfig, PhysicsConfig
from .bad import BadVideo, shown
from .decode import read_clip
from .plans import Sample, SamplePlan, derived_key
from .remote import Cache
from .shards.scan import label_of
from .sources.facts import describe_scene
from .sources.physics import render_scene, scene_kind
from .video.container import Blob, Limits, limits_of

NO_LATENTS: Any = np.empty(0, np.float32)


class Job(Protocol):
    """What a worker is given."""

    @property
    def plan(self) -> SamplePlan:
        """The sample."""
        ...

    @property
    def label(self) -> str:
        """For people: where the sample comes from."""
        ...

    def read(self) -> Sample:
        """The sample: ``pixels`` uint8 [F, h, w, 3] and an empty ``mean``, or latents (float32 arrays) and no pixels;
        BadVideo when it cannot be read.
        """
        ...


def scene_key(key: int) -> int:
    """Key of the scene that a sample with this key shows."""
    return derived_key(key, "scene")


def read_job(job: Job) -> Sample:
    """What a worker does."""
    return job.read()


@dataclass(frozen=True)
class Reading:
    """How videos are decoded: longest side and multiple of the sides in pixels, limits, threads of a
    decoder, its name.
    """

    longest_side: int
    size_multiple: int
    limits: Limits
    threads: int
    decoder: str


def reading_of(config: DataConfig) -> Reading:
    """The options of a run that concern decoding."""
    return Reading(config.longest_side, config.size_multiple, limits_of(config), config.decode_threads, config.decoder)


@dataclass(frozen=True)
class PhysicsJob:
    """A generated scene."""

    plan: SamplePlan
    config: PhysicsConfig
    described: bool = False

    @property
    def label(self) -> str:
        """Kind and key of the scene."""
        return f"{scene_kind(self.config, scene_key(self.plan.key))}-{self.plan.key:016x}"

    def read(self) -> Sample:
        """pixels uint8 [F, size, size, 3], and what the scene says of itself where that is wanted."""
        plan = self.plan
        key = scene_key(plan.key)
        sample = _sample(plan, self.label, render_scene(self.config, key, len(plan.frames), plan.interval))
        if not self.described:
            return sample
        facts = describe_scene(self.config, key)
        return replace(sample, label=facts.name, caption=facts.caption)


@dataclass(frozen=True)
class FileJob:
    """Frames ``plan.frames`` of a video file.  table: see `VideoInfo`."""

    plan: SamplePlan
    path: str
    reading: Reading
    table: bytes = field(default=b"", repr=False)

    @property
    def label(self) -> str:
        """File, first frame and interval."""
        return place(shown(self.path), self.plan)

    def read(self) -> Sample:
        """pixels uint8 [F, h, w, 3], resized and cropped."""
        return _sample(self.plan, self.label, _decode(self.path, self.plan, self.reading, self.table))


@dataclass(frozen=True)
class MemberJob:
    """Frames ``plan.frames`` of a video in a shard.

    url: of the tar file; key: of the member; offset, size: its bytes in the tar file; table: see
    `VideoInfo`.
    """

    plan: SamplePlan
    url: str
    key: str
    offset: int
    size: int
    reading: Reading
    cache: Cache
    table: bytes = field(default=b"", repr=False)

    @property
    def label(self) -> str:
        """Shard, key, first frame and interval."""
        return place(label_of(self.url, self.key), self.plan)

    def read(self) -> Sample:
        """pixels uint8 [F, h, w, 3], resized and cropped."""
        name = label_of(self.url, self.key)
        if self.size > self.reading.limits.bytes:
            raise BadVideo(
                name,
                f"{self.size} bytes, over the limit of {self.reading.limits.bytes} (data.max_video_mb)",
                "too_large",
            )
        return _sample(
            self.plan,
            self.label,
            _decode(
                Blob(name, read_member(self.cache, self.url, self.key, self.offset, self.size)),
                self.plan,
                self.reading,
                self.table,
            ),
        )


def read_member(cache: Cache, url: str, key: str, offset: int, size: int) -> bytes:
    """Bytes of a shard; a BadVideo has the member's name, not only the shard's."""
    try:
        return cache.read(url, offset, size)
    except BadVideo as error:
        raise BadVideo(label_of(url, key), error.reason, error.kind) from error


def place(name: str, plan: SamplePlan) -> str:
    """A video's name, the first frame and the interval of a sample: name[128::4]"""
    return f"{name}[{plan.frames[0]}::{plan.interval}]"


def _decode(video: str | Blob, plan: SamplePlan, how: Reading, table: bytes) -> np.ndarray:
    pixels = read_clip(
        video, plan.frames, how.longest_side, how.size_multiple, how.limits, how.threads, how.decoder, table
    )
    if pixels.shape[1:3] != plan.size:
        # The row of this sample is laid out by the size that the index gives; metadata that others wrote may be wrong.
        real, promised = (f"{width}x{height}" for height, width in (pixels.shape[1:3], plan.size))
        name = video if isinstance(video, str) else video.name
        raise BadVideo(
            name, f"frames of {real} pixels after resizing, but its metadata promised {promised}", "metadata"
        )
    return pixels


def _sample(plan: SamplePlan, label: str, pixels: np.ndarray) -> Sample:
    return Sample(
        plan.key,
        label,
        NO_LATENTS,
        None,
        plan.clips,
        pixels,
        number=plan.number,
        given=plan.given,
        dropped=plan.dropped,
    )
