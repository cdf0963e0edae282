"""One video on its way into a shard: its bytes, what is known of it, whether it is good enough, and its scenes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UserError
from ..bad import BadVideo
from ..decode import VideoInfo, probe
from ..video.container import Blob, Limits, identity
from ..video.release import check_pyav
from .columns import read_sidecars
from .listings import Listing, Member, Row, describe
from .scene_cuts import THRESHOLD, cut_scenes, require_scenedetect
from .tables import parse_object


@dataclass(frozen=True)
class Options:
    """What decides the bytes that are written.

    sources, listing: see `list_rows`.  limit: only the first so many rows; 0 for all. shard_mb, shard_count: a shard is
    closed after the video with which it reaches so many 10^6 bytes, or so many videos. min_side, max_aspect,
    min_frames: smaller, longer-stretched and shorter videos (with scenes: pieces) are rejected. scenes,
    scene_threshold: see `cut_scenes`.  limits: see `Limits`.
    """

    sources: tuple[str, ...]
    listing: Listing = field(default_factory=Listing)
    limit: int = 0
    shard_mb: float = 1000.0
    shard_count: int = 10_000
    min_side: int = 128
    max_aspect: float = 4.0
    min_frames: int = 16
    scenes: bool = False
    scene_threshold: float = THRESHOLD
    limits: Limits = Limits()


@dataclass(frozen=True)
class Ready:
    """A video as it goes into a shard.  data: uint8 array of the file's bytes, which travels between processes in
    shared memory; table: see `VideoInfo`.
    """

    key: str
    suffix: str
    data: np.ndarray
    meta: dict[str, Any]
    table: bytes = b""


def check_options(options: Options) -> None:
    """ValueError, one line, for an option out of range."""
    rules = [
        (options.limit >= 0, f"--limit={options.limit}: must be 0 (all) or more"),
        (options.shard_mb > 0, f"--shard-mb={options.shard_mb:g}: must be above 0; 1000 is usual"),
        (options.shard_count >= 1, f"--shard-count={options.shard_count}: must be at least 1"),
        (options.max_aspect >= 1, f"--max-aspect={options.max_aspect:g}: must be at least 1, which is a square"),
        (options.min_frames >= 1, f"--min-frames={options.min_frames}: must be at least 1"),
        (
            options.scene_threshold > 0,
            f"--scene-threshold={options.scene_threshold:g}: must be above 0; PySceneDetect's is {THRESHOLD:g}",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(message)
    check_pyav()
    if options.scenes:
        require_scenedetect()


def read_row(row: Row, options: Options) -> list[Ready] | None:
    """What one row gives: a video, or the pieces of its scenes; None when it does not meet ``options.listing.where``.

    Raises:
        BadVideo: it cannot be used; under the row's name.
    """
    try:
        return _read_row(row, options)
    except BadVideo as error:
        raise BadVideo(row.name, error.reason, error.kind) from error


def _read_row(row: Row, options: Options) -> list[Ready] | None:
    extra = _companions(row) if row.member else read_sidecars(row.path) if options.listing.sidecars else {}
    described = describe(row, options.listing, extra)
    if described is None:
        return None
    # Shards keep the metadata they had; sidecars may hold pages of subtitles, and give caption and label only.
    described = (
        {"source": row.name}
        | {name: value for name, value in extra.items() if row.member and name != "txt"}
        | described
    )
    video = Blob(row.name, _read(row.path, row.member, options.limits))
    if not options.scenes:
        return [_ready(row.key, row.suffix, video, described, options)]
    pieces = cut_scenes(video, row.suffix, options.min_frames, options.scene_threshold, options.limits)
    if not pieces:
        raise BadVideo(
            row.name, f"no scene of which {options.min_frames} frames or more begin with a key frame", "too_short"
        )
    ready = []
    for number, piece in enumerate(pieces):
        place = {"start": round(piece.start, 6), "end": round(piece.end, 6), "first_frame": piece.first}
        ready.append(
            _ready(
                f"{row.key}_{number:04d}",
                piece.suffix,
                Blob(f"{row.name}[{piece.first}:]{piece.suffix}", piece.data),
                described | place,
                options,
            )
        )
    return ready


def _ready(key: str, suffix: str, video: Blob, described: dict[str, Any], options: Options) -> Ready:
    info = probe(video, options.limits)
    _check_video(info, video.name, options)
    facts = {
        "width": info.width,
        "height": info.height,
        "frames": info.frames,
        "fps": round(info.fps, 6),
        "duration": round(info.frames / info.fps, 6),
    }
    return Ready(key, suffix, np.frombuffer(video.data, np.uint8), described | facts, info.table)


def _check_video(info: VideoInfo, name: str, options: Options) -> None:
    short, long = sorted((info.width, info.height))
    if short < options.min_side:
        raise BadVideo(name, f"{info.width}x{info.height} pixels, --min-side={options.min_side}", "too_small")
    if long / short > options.max_aspect:
        raise BadVideo(name, f"{info.width}x{info.height} pixels, --max-aspect={options.max_aspect:g}", "too_elongated")
    if info.frames < options.min_frames:
        raise BadVideo(name, f"{info.frames} frames, --min-frames={options.min_frames}", "too_short")


def _read(path: str, member: Member | None, limits: Limits) -> bytes:
    """The bytes of a file or member; BadVideo when there are too many, or fewer than promised."""
    if member is None:
        identity(path, limits)
    elif member.size > limits.bytes:
        raise BadVideo(
            path, f"a member of {member.size / 1e6:.1f} MB, --max-video-mb={limits.bytes / 1e6:g}", "too_large"
        )
    try:
        with open(path, "rb") as file:
            file.seek(member.offset if member else 0)
            data = file.read(member.size if member else limits.bytes + 1)
    except OSError as error:
        raise BadVideo(path, error.strerror or str(error), "missing") from error
    if member and len(data) < member.size:
        raise BadVideo(path, f"a member of {member.size} bytes ends after {len(data)}", "truncated")
    return data


def _companions(row: Row) -> dict[str, Any]:
    """What a shard has beside its video: the JSON's fields and, as "txt", the text."""
    member, columns = row.member, {}
    assert member is not None
    if member.text_size:
        columns["txt"] = _read(row.path, Member(member.text_offset, member.text_size), Limits()).decode(
            "utf-8", "replace"
        )
    if member.meta_size:
        found = parse_object(_read(row.path, Member(member.meta_offset, member.meta_size), Limits()), row.name)
        if isinstance(found, BadVideo):
            raise found
        columns.update(found)
    return columns
