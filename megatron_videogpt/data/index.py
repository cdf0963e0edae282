"""Where samples come from: a folder of videos or the physics generator, each split into training and validation.

A split answers two questions: `plan` (which frames make sample number i of an epoch; cheap, the same on every rank) and
`pixels` (those frames; may raise BadVideo).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_videogpt.config.schema import DataConfig
from megatron_videogpt.data.clips import SamplePlan, derived_key, plan_sample, sample_key, video_span
from megatron_videogpt.data.decode import BadVideo, VideoInfo, probe, read_frames, resize_frames, resized_shape
from megatron_videogpt.data.physics import check_physics, render_scene, scene_kind

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv .y4m".split())
TIME_SPLIT = 0.8  # a lone video is trained on its first part and validated on the rest


class Geometry(Protocol):
    """What is needed of a codec here (a Codec or a CodecGeometry)."""

    @property
    def spatial_stride(self) -> int: ...
    @property
    def temporal_stride(self) -> int: ...


class Split(Protocol):
    """Numbered samples; ``len`` is the samples of an epoch."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def plan(self, seed: int, epoch: int, index: int, attempt: int = 0) -> SamplePlan: ...
    def pixels(self, plan: SamplePlan) -> np.ndarray: ...
    def label(self, plan: SamplePlan) -> str: ...


@dataclass(frozen=True)
class Source:
    """Training and validation samples, and what had to be left out."""

    train: Split
    validation: Split
    skipped: tuple[BadVideo, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A video, or for a lone one a part of it."""

    info: VideoInfo
    first: int
    frames: int


@dataclass(frozen=True)
class FolderSplit:
    """Videos of a folder.  An epoch visits each max(1, frames // sample span) times, in a permuted order."""

    name: str
    config: DataConfig
    temporal_stride: int
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(_slots(self))

    def plan(self, seed: int, epoch: int, index: int, attempt: int = 0) -> SamplePlan:
        """Sample ``index`` of an epoch; ``attempt`` > 0 is its replacement when the ones before could not be read."""
        key = sample_key(seed, epoch, index, self.name)
        if attempt:
            key = derived_key(key, f"attempt {attempt}")
            index = key % len(self)
        item = int(_slots(self)[_permutation(len(self), sample_key(seed, epoch, -1, self.name))[index]])
        return plan_sample(self.config, self.temporal_stride, key, item, self.segments[item].frames)

    def pixels(self, plan: SamplePlan) -> np.ndarray:
        """uint8 [F, H, W, 3], resized and cropped; BadVideo when the file cannot be read (any more)."""
        segment = self.segments[plan.item]
        frames = read_frames(segment.info.path, [segment.first + frame for frame in plan.frames])
        return resize_frames(frames, self.config.longest_side, self.config.size_multiple)

    def label(self, plan: SamplePlan) -> str:
        """File, first frame and interval."""
        segment = self.segments[plan.item]
        return f"{segment.info.path}[{segment.first + plan.frames[0]}::{plan.interval}]"


@dataclass(frozen=True)
class PhysicsSplit:
    """Generated scenes: new ones in every epoch, those of validation disjoint from those of training."""

    name: str
    config: DataConfig
    temporal_stride: int

    def __len__(self) -> int:
        return self.config.physics.epoch_scenes

    def plan(self, seed: int, epoch: int, index: int, attempt: int = 0) -> SamplePlan:
        """Sample ``index`` of an epoch (scenes can always be drawn, so ``attempt`` has no use here but to ask for another)."""
        key = sample_key(seed, epoch, index, self.name)
        return plan_sample(self.config, self.temporal_stride, derived_key(key, f"attempt {attempt}") if attempt else key, -1, None)

    def pixels(self, plan: SamplePlan) -> np.ndarray:
        """uint8 [F, size, size, 3]."""
        return render_scene(self.config.physics, derived_key(plan.key, "scene"), len(plan.frames), plan.interval)

    def label(self, plan: SamplePlan) -> str:
        """Kind and key of the scene."""
        return f"{scene_kind(self.config.physics, derived_key(plan.key, 'scene'))}-{plan.key:016x}"


def open_source(config: DataConfig, codec: Geometry) -> Source:
    """Open the configured source.

    Raises:
        ValueError: one line: an option out of range, a missing folder, no usable video.
    """
    _check(config, codec)
    if config.source == "physics":
        check_physics(config.physics)
        train, validation = (PhysicsSplit(name, config, codec.temporal_stride) for name in ("train", "validation"))
        return Source(train, validation)
    return _open_folder(config, codec.temporal_stride)


def list_videos(folder: str | Path) -> list[Path]:
    """All files with a known video extension, searched recursively, sorted; ValueError when there are none."""
    root = Path(folder)
    if not str(folder):
        raise ValueError("data.path is empty: data.source=videos needs a folder of videos")
    if not root.exists():
        raise ValueError(f"data.path={folder}: no such folder")
    if not root.is_dir():
        raise ValueError(f"data.path={folder}: is a file; give the folder that holds the videos")
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not videos:
        raise ValueError(f"data.path={folder}: no videos in it (looked for {', '.join(sorted(EXTENSIONS))})")
    return videos


def _check(config: DataConfig, codec: Geometry) -> None:
    low, high = config.frame_interval
    rules = [
        (config.source in ("physics", "videos"), f"data.source={config.source!r}: choose physics or videos"),
        (config.frames >= 1, f"data.frames={config.frames}: must be at least 1"),
        (1 <= low <= high, f"data.frame_interval={[low, high]}: needs 1 <= smallest <= largest"),
        (1 <= config.clips[0] <= config.clips[1], f"data.clips={list(config.clips)}: needs 1 <= smallest <= largest"),
        (config.clips[0] <= config.frames, f"data.clips={list(config.clips)}: the smallest exceeds data.frames={config.frames}"),
        (0 < config.validation_fraction < 1, f"data.validation_fraction={config.validation_fraction}: must be between 0 and 1"),
    ]
    if config.source == "physics":
        side = config.physics.size
        rules += [(side % codec.spatial_stride == 0, f"data.physics.size={side}: must be a multiple of the codec's stride {codec.spatial_stride}")]
    else:
        multiple = config.size_multiple
        rules += [
            (
                multiple >= 1 and multiple % codec.spatial_stride == 0,
                f"data.size_multiple={multiple}: must be a multiple of the codec's stride {codec.spatial_stride}",
            ),
            (
                multiple >= 1 and config.longest_side >= multiple and config.longest_side % multiple == 0,
                f"data.longest_side={config.longest_side}: must be a multiple of data.size_multiple={multiple}",
            ),
        ]
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def _open_folder(config: DataConfig, temporal_stride: int) -> Source:
    """Probe every video once; name, count and skip what cannot be used."""
    needed = video_span(1 + temporal_stride * (config.frames - 1), config.frame_interval[0])
    good: list[VideoInfo] = []
    skipped: list[BadVideo] = []
    for path in list_videos(config.path):
        try:
            good.append(_usable(probe(path), config, needed))
        except BadVideo as error:
            skipped.append(error)
            log.warning("skipped video %s", error)
    if skipped:
        log.warning("%d of %d videos in %s skipped", len(skipped), len(skipped) + len(good), config.path)
    if not good:
        raise ValueError(f"data.path={config.path}: none of {len(skipped)} videos can be used; the first: {skipped[0]}")
    train, validation, notes = _divide(good, config, needed)
    for note in notes:
        log.warning(note)
    splits = [FolderSplit(name, config, temporal_stride, part) for name, part in (("train", train), ("validation", validation))]
    return Source(splits[0], splits[1], tuple(skipped), notes)


def _usable(info: VideoInfo, config: DataConfig, needed: int) -> VideoInfo:
    short, long = sorted((info.width, info.height))
    if short < config.min_side:
        raise BadVideo(info.path, f"too small: {info.width}x{info.height}, data.min_side={config.min_side}")
    if long / short > config.max_aspect:
        raise BadVideo(info.path, f"too elongated: {info.width}x{info.height}, data.max_aspect={config.max_aspect:g}")
    if info.frames < needed:
        raise BadVideo(info.path, f"too short: {info.frames} frames, a sample spans {needed}")
    try:
        resized_shape(info.width, info.height, config.longest_side, config.size_multiple)
    except ValueError as error:
        raise BadVideo(info.path, str(error)) from error
    return info


def _divide(videos: list[VideoInfo], config: DataConfig, needed: int) -> tuple[tuple[Segment, ...], tuple[Segment, ...], tuple[str, ...]]:
    """(training, validation, notes): whole videos by the hash of their path inside the folder; a lone video is cut in time."""
    if len(videos) == 1:
        info = videos[0]
        cut = int(info.frames * TIME_SPLIT)
        if min(cut, info.frames - cut) >= needed:
            note = f"only one video: trained on its first {cut} frames, validated on the other {info.frames - cut}"
            return (Segment(info, 0, cut),), (Segment(info, cut, info.frames - cut),), (note,)
        whole = (Segment(info, 0, info.frames),)
        return whole, whole, ("only one short video: validation uses the training video, so it cannot show over-fitting",)
    share = {info: sample_key(0, 0, 0, Path(info.path).relative_to(config.path).as_posix()) / 2**63 for info in videos}
    ranked = sorted(videos, key=lambda info: share[info])
    held_out = sum(share[info] < config.validation_fraction for info in videos)
    held_out = min(max(1, held_out), len(videos) - 1)
    parts = ([Segment(info, 0, info.frames) for info in part] for part in (ranked[held_out:], ranked[:held_out]))
    train, validation = (tuple(sorted(part, key=lambda segment: segment.info.path)) for part in parts)
    return train, validation, ()


@lru_cache(maxsize=8)
def _slots(split: FolderSplit) -> np.ndarray:
    """Video number of every sample of an epoch, before permutation: int32 [len]."""
    span = video_span(1 + split.temporal_stride * (split.config.frames - 1), split.config.frame_interval[0])
    visits = [max(1, segment.frames // span) for segment in split.segments]
    return np.repeat(np.arange(len(visits), dtype=np.int32), visits)


@lru_cache(maxsize=8)
def _permutation(length: int, key: int) -> np.ndarray:
    """A permutation of 0..length-1: the order of hashed numbers (splitmix64), the same for every version of numpy."""
    with np.errstate(over="ignore"):
        z = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")
