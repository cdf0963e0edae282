"""Where samples come from: the physics generator, folders of videos, shards of videos or of latents, or a mixture, each
split into training and validation.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from ...codec.geometry import Geometry
from ...config.schema_data import DataConfig
from ...errors import UserError
from ..bad import BadVideo
from ..conditioning import UNCONDITIONAL, Conditioning
from ..mixture import Mixture
from ..plans import shortest_video
from ..splits import BLOCK, PhysicsSplit, Split, VideoSplit, resized_sizes
from ..video.container import limits_of
from ..video.release import check_pyav
from ..video.torchcodec import check_torchcodec
from .conditions import with_conditions
from .datasets import Folder, Shards, open_folder, open_shards
from .facts import scene_classes
from .physics import check_physics

log = logging.getLogger(__name__)

TIME_SPLIT = 0.8  # a lone video is trained on its first part and validated on the rest
NAMED = 20  # videos left out that are named; the others are counted
KINDS = (
    "",
    "too_large",
    "too_small",
    "too_elongated",
    "too_short",
    "too_small",
)  # of rejection, by the number of the rule in `_faults`


@dataclass(frozen=True)
class Source:
    """Training and validation samples, and what had to be left out: the first few by name, all of it
    counted by kind; conditioning: how their conditions are made.
    """

    train: Split
    validation: Split
    skipped: tuple[BadVideo, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    conditioning: Conditioning = UNCONDITIONAL


@dataclass(frozen=True)
class Usable:
    """A data set, the numbers of its videos that can be used, and what was left out: the first few, and all by kind."""

    collection: Folder | Shards
    items: np.ndarray
    skipped: tuple[BadVideo, ...]
    left_out: Counter[str]


@dataclass(frozen=True)
class _Opened:
    """As `Source`, of one data set."""

    train: VideoSplit
    validation: VideoSplit
    notes: tuple[str, ...]


def open_source(config: DataConfig, codec: Geometry, conditioning: Conditioning = UNCONDITIONAL) -> Source:
    """Open the configured source.

    conditioning: ``Conditioning(config.condition)`` will do.  `Source.conditioning` has what was found out here and is
    what everybody uses then: features of texts where all data sets have them, else the text encoder, on the CPU (see
    `conditions.with_conditions`).

    Raises:
        ValueError: one line: an option out of range, a missing folder, no usable video, latents of another VAE, a scene
            of no class, text features that do not fit, no text encoder.
    """
    _check(config, codec)
    if config.source == "physics":
        check_physics(config.physics)
        if conditioning.options.kind == "class":
            for name in scene_classes(config.physics.kinds, 3):
                conditioning.number(name)
        conditioning, _ = with_conditions(conditioning, (), config)
        once = replace(config.physics, scenes=config.physics.kinds)
        return Source(
            PhysicsSplit("train", config, codec.temporal_stride, conditioning),
            PhysicsSplit("validation", replace(config, physics=once), codec.temporal_stride, conditioning),
            conditioning=conditioning,
        )
    check_pyav()
    if config.decoder != "pyav":
        check_torchcodec(config.decoder)
    paths = list(config.mixture) or [config.path]
    found = [_usable(config, codec, path) for path in paths]
    conditioning, collections = with_conditions(conditioning, [usable.collection for usable in found], config)
    parts = [
        _opened(config, codec, replace(usable, collection=collection), dataset, conditioning)
        for dataset, (usable, collection) in enumerate(zip(found, collections))
    ]
    weights = tuple(float(weight) for weight in config.mixture.values())
    return Source(
        Mixture("train", tuple(part.train for part in parts), weights) if weights else parts[0].train,
        Mixture("validation", tuple(part.validation for part in parts), weights) if weights else parts[0].validation,
        tuple(error for usable in found for error in usable.skipped),
        tuple(note for part in parts for note in part.notes),
        sum((usable.left_out for usable in found), Counter()),
        conditioning,
    )


def _check(config: DataConfig, codec: Geometry) -> None:
    low, high = config.frame_interval
    sources = ("physics", "videos", "shards")
    rules = [
        (config.source in sources, f"data.source={config.source!r}: choose {', '.join(sources)}"),
        (config.frames >= 1, f"data.frames={config.frames}: must be at least 1"),
        (
            0 <= config.min_frames <= config.frames,
            f"data.min_frames={config.min_frames}: must be between 0 and data.frames={config.frames}",
        ),
        (1 <= low <= high, f"data.frame_interval={[low, high]}: needs 1 <= smallest <= largest"),
        (1 <= config.clips[0] <= config.clips[1], f"data.clips={list(config.clips)}: needs 1 <= smallest <= largest"),
        (
            config.clips[0] <= config.frames,
            f"data.clips={list(config.clips)}: the smallest exceeds data.frames={config.frames}",
        ),
        (
            0 < config.validation_fraction < 1,
            f"data.validation_fraction={config.validation_fraction}: must be between 0 and 1",
        ),
    ]
    rules += [
        (weight > 0, f"data.mixture: the weight {weight} of {path} must be above 0")
        for path, weight in config.mixture.items()
    ]
    if config.source == "physics":
        side = config.physics.size
        rules += [
            (
                side % codec.spatial_stride == 0,
                f"data.physics.size={side}: must be a multiple of the codec's stride {codec.spatial_stride}",
            )
        ]
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
            raise UserError(message)


def _usable(config: DataConfig, codec: Geometry, path: str) -> Usable:
    """What can be used of one data set, at least one video; what cannot goes to the log."""
    usable = usable_videos(config, codec, path, shortest_video(config, codec.temporal_stride), NAMED)
    for error in usable.skipped:
        log.warning("skipped video %s", error)
    bad, total = usable.left_out.total(), usable.left_out.total() + len(usable.items)
    if bad:
        log.warning(
            "%d of %d videos in %s skipped: %s",
            bad,
            total,
            path,
            ", ".join(f"{count} {kind}" for kind, count in usable.left_out.most_common()),
        )
    if not len(usable.items):
        raise UserError(
            f"data.path={path}: none of {total} videos can be used"
            + (f"; the first: {usable.skipped[0]}" if bad else "")
        )
    return usable


def _opened(config: DataConfig, codec: Geometry, usable: Usable, dataset: int, conditioning: Conditioning) -> _Opened:
    """One data set, divided."""
    needed = shortest_video(config, codec.temporal_stride)
    train, validation, notes = _divide(
        usable.collection, usable.items, config, codec.temporal_stride, needed, dataset, conditioning
    )
    for note in notes:
        log.warning(note)
    return _Opened(train, validation, notes)


def usable_videos(config: DataConfig, codec: Geometry, path: str, needed: int, named: int) -> Usable:
    """The videos of a data set that the rules of the configuration let pass.

    Args:
        config, codec, path: as for `open_source`, for one data set.
        needed: frames that a video must have.
        named: how many videos left out are named; all are counted.

    Raises:
        ValueError: one line: no such data set, or latents of another VAE.
    """
    collection, rejected = open_folder(config, path) if config.source == "videos" else open_shards(config, codec, path)
    items: list[np.ndarray] = []
    skipped = rejected[:named]
    left_out = Counter(error.kind for error in rejected)
    small = np.int32 if len(collection.entries) < 2**31 else np.int64
    for start in range(0, len(collection.entries), BLOCK):
        block = collection.entries[start : start + BLOCK]
        faults = _faults(block, config, needed)
        items.append((start + np.flatnonzero(faults == 0)).astype(small))
        for fault, count in enumerate(np.bincount(faults).tolist()):
            if fault and count:
                left_out[KINDS[fault]] += count
        for i in np.flatnonzero(faults)[: max(0, named - len(skipped))].tolist():
            skipped.append(
                BadVideo(
                    collection.name(start + i), _reason(block[i], int(faults[i]), config, needed), KINDS[faults[i]]
                )
            )
    return Usable(collection, np.concatenate(items) if items else np.empty(0, small), tuple(skipped), left_out)


def _faults(entries: np.ndarray, config: DataConfig, needed: int) -> np.ndarray:
    """uint8 place in `KINDS` of the first rule that each video breaks; 0 for none."""
    width, height, frames = (entries[name].astype(np.int64) for name in ("width", "height", "frames"))
    short, long = np.minimum(width, height), np.maximum(width, height)
    limits = limits_of(config)
    resized = resized_sizes(width, height, config.longest_side, config.size_multiple)
    rules = [
        (width * height > limits.pixels) | (frames > limits.frames),
        short < max(1, config.min_side),
        long > config.max_aspect * short,
        frames < needed,
        np.minimum(*resized) < 1,
    ]
    return np.select(rules, list(range(1, len(KINDS))), 0).astype(np.uint8)


def _reason(entry: np.void, fault: int, config: DataConfig, needed: int) -> str:
    size, frames = f"{entry['width']}x{entry['height']}", int(entry["frames"])
    return (
        "",
        f"too large: {size} pixels, {frames} frames; limits are "
        f"data.max_megapixels={config.max_megapixels:g}, data.max_video_frames={config.max_video_frames}",
        f"too small: {size}, data.min_side={config.min_side}",
        f"too elongated: {size}, data.max_aspect={config.max_aspect:g}",
        f"too short: {frames} frames, a sample spans {needed}",
        f"a {size} picture at longest side {config.longest_side} has a side below {config.size_multiple} "
        "pixels: raise data.longest_side",
    )[fault]


def _divide(
    collection: Folder | Shards,
    items: np.ndarray,
    config: DataConfig,
    temporal_stride: int,
    needed: int,
    dataset: int,
    conditioning: Conditioning,
) -> tuple[VideoSplit, VideoSplit, tuple[str, ...]]:
    """(training, validation, notes): whole videos by the hash of their path or key; a lone video is cut in time."""

    def split(name: str, chosen: np.ndarray, part: tuple[int, int] | None = None) -> VideoSplit:
        return VideoSplit(name, config, temporal_stride, collection, chosen, dataset, part, conditioning)

    if len(items) == 1:
        frames = int(collection.entries[items[0]]["frames"])
        cut = int(frames * TIME_SPLIT)
        if min(cut, frames - cut) >= needed:
            note = f"only one video: trained on its first {cut} frames, validated on the other {frames - cut}"
            return split("train", items, (0, cut)), split("validation", items, (cut, frames - cut)), (note,)
        note = "only one short video: validation uses the training video, so it cannot show over-fitting"
        return split("train", items), split("validation", items), (note,)
    shares = collection.holdout_hashes(items)
    # Two videos of one source have the same hash and stay together; at least one source is on each side.
    held_out = shares < np.uint64(int(config.validation_fraction * 2**64))
    held_out |= shares == shares.min()
    if held_out.all():
        held_out = shares != shares.max()
    return split("train", items[~held_out]), split("validation", items[held_out]), ()
