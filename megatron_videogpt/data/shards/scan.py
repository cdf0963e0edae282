"""What a shard holds: the members of a WebDataset tar file, grouped by key, with the geometry that their JSON gives.

A name up to the first dot after the last slash is its key.  ``key.mp4`` (or another video, or ``key.safetensors``)
makes a sample, ``key.json`` its metadata, ``key.txt`` its caption; other companions that such data sets have, and what
macOS adds of its own (``._key.mp4``), are left alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bad import BadVideo, shown
from ..decode import VideoInfo, probe
from ..remote import Cache, opened_at
from ..sources.files import is_apple_double
from ..video.container import LARGEST_SIDE, SMALLEST_SIDE, Blob, Limits
from .tar import Member, members

LATENTS = "safetensors"
# Their numbers are stored in indexes: add at the end only.
SUFFIXES = (LATENTS, *"3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv y4m".split())
TEXTS = ("txt", "text", "caption")
UNTIMED = frozenset("avi flv gif m2ts mpeg mpg mts ogv ts vob wmv y4m".split())
"""Suffixes of videos that are probed whatever their JSON says: which frame is which, only decoding may tell."""
COMPANIONS = frozenset(
    "cls id npy npz jpg jpeg png webp mp3 m4a wav flac aac ogg srt vtt csv tsv html xml md5 sha256".split()
)
LONGEST_JSON = 1 << 20  # bytes
ENTRY = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("meta_offset", "<u8"),
        ("meta_size", "<u4"),
        ("text_offset", "<u8"),
        ("text_size", "<u4"),
    ]
    + [
        ("width", "<u4"),
        ("height", "<u4"),
        ("frames", "<u4"),
        ("fps", "<f4"),
        ("key_start", "<u8"),
        ("key_size", "<u4"),
        ("suffix", "u1"),
    ]
)


@dataclass
class Part:
    """What one shard adds to an index: `ENTRY` rows (shard 0), keys one after another in UTF-8, what is left out, and
    the tables of videos whose times do not tell (see `VideoInfo`), by row; rows without frames are to be probed.
    """

    entries: np.ndarray
    keys: bytes
    rejected: list[BadVideo]
    tables: dict[int, bytes] = field(default_factory=dict)


@dataclass
class _Group:
    """Members of one key by role (video, meta, text), what its JSON says, and whether something about it was reported
    already.
    """

    found: dict[str, Member] = field(default_factory=dict)
    suffix: str = ""
    geometry: tuple[int, int, int, float] | None = None
    reported: bool = False


def label_of(url: str, key: str) -> str:
    """shard-000012.tar[clip_0003]"""
    return f"{shown(url.rsplit('/', 1)[-1])}[{key}]"


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case without its dot) of a member's name; the key is empty when the name has none."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return (folder + slash + key if key else ""), rest.rpartition(".")[2].lower()


def scan_shard(url: str, limits: Limits) -> Part:
    """Look through the headers and the metadata of a tar file; BadVideo when it cannot be opened."""
    shard = shown(url.rsplit("/", 1)[-1])
    rejected: list[BadVideo] = []
    groups: dict[str, _Group] = {}
    with opened_at(url) as (read, length):
        for member in members(shard, read, length):
            if isinstance(member, BadVideo):
                rejected.append(member)
                key = "" if member.path == shard else split_name(member.path[len(shard) + 1 : -1].removeprefix("./"))[0]
                groups.setdefault(key, _Group()).reported = True
                continue
            try:
                _place(groups, member, shard, url, read, limits)
            except BadVideo as error:
                rejected.append(error)
    rows, keys = [], []
    for key, group in groups.items():
        try:
            row = _row(label_of(url, key), group, limits)
        except BadVideo as error:
            rejected.append(error)
            continue
        if row is not None:
            if group.suffix in UNTIMED:
                row = (*row[:6], 0, 0, 0, 0.0)
            keys.append(key.encode())
            rows.append((0, *row, 0, len(keys[-1]), SUFFIXES.index(group.suffix)))
    entries = np.array(rows, ENTRY)
    entries["key_start"] = np.cumsum(entries["key_size"], dtype=np.uint64) - entries["key_size"]
    return Part(entries, b"".join(keys), rejected)


def probe_member(url: str, key: str, offset: int, size: int, limits: Limits, cache: Cache) -> VideoInfo:
    """What a video in a shard is; BadVideo when it is none."""
    return probe(Blob(label_of(url, key), cache.read(url, offset, size)), limits)


def _place(groups: dict[str, _Group], member: Member, shard: str, url: str, read: Any, limits: Limits) -> None:
    """Put a member to its key and look into metadata; BadVideo when something is wrong with it."""
    key, suffix = split_name(member.name)
    if is_apple_double(member.name) or (key and suffix in COMPANIONS):
        return
    group = groups.setdefault(key, _Group())
    role = "video" if suffix in SUFFIXES else "meta" if suffix == "json" else "text" if suffix in TEXTS else ""
    if not key or not role:
        group.reported = True
        fault = f"extension .{suffix} is no video's (known: {' '.join(SUFFIXES[1:])})"
        raise BadVideo(
            f"{shard}[{member.name}]", fault if key else "no key before the first dot of its name", "extension"
        )
    if role in group.found:
        raise BadVideo(f"{shard}[{member.name}]", f"the key {key} has another {role} already", "incomplete")
    group.found[role] = member
    if role == "video":
        group.suffix = suffix
    elif role == "meta":
        label, before = label_of(url, key), group.reported
        # Until it has proved sound: what is wrong with the metadata is said once, also of latents, which need it.
        group.reported = True
        del group.found["meta"]
        found = parse_json(label, read(member.offset, min(member.size, LONGEST_JSON + 1)))
        group.found["meta"] = member
        group.geometry = geometry_of(label, found, limits)
        group.reported = before


def _row(label: str, group: _Group, limits: Limits) -> tuple | None:
    """offset .. fps of `ENTRY`; None where all that is wrong was reported; BadVideo where the key makes no sample."""
    video = group.found.get("video")
    if video is None:
        if group.reported or not group.found:
            return None
        raise BadVideo(
            label, f"no video, only {' and '.join(member.name for member in group.found.values())}", "incomplete"
        )
    if video.size > limits.bytes:
        raise BadVideo(
            label, f"{video.size / 1e6:.1f} MB, more than data.max_video_mb={limits.bytes / 1e6:g}", "too_large"
        )
    if video.size == 0:
        raise BadVideo(label, "an empty file", "no_frames")
    if group.geometry is None and group.suffix == LATENTS:
        if group.reported:
            return None
        raise BadVideo(label, "latents without sound width, height and frames in their JSON", "metadata")
    companions = [group.found.get(role) for role in ("meta", "text")]
    places = [
        (member.offset, member.size) if member is not None and member.size <= LONGEST_JSON else (0, 0)
        for member in companions
    ]
    return video.offset, video.size, *places[0], *places[1], *(group.geometry or (0, 0, 0, 0.0))


def parse_json(label: str, data: bytes) -> dict[str, Any]:
    """A JSON object; BadVideo of kind "metadata" when it is none."""
    if len(data) > LONGEST_JSON:
        raise BadVideo(label, f"JSON of more than {LONGEST_JSON} bytes", "metadata")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadVideo(label, f"JSON that cannot be read ({error})", "metadata") from error
    if not isinstance(found, dict):
        raise BadVideo(label, f"JSON that is no object but {type(found).__name__}", "metadata")
    return found


def geometry_of(label: str, found: dict[str, Any], limits: Limits) -> tuple[int, int, int, float] | None:
    """(width, height, frames, fps or 0) that metadata gives; None where it does not give them all; BadVideo where no
    video within limits has them.
    """
    width, height, frames = (found.get(name) for name in ("width", "height", "frames"))
    if width is None or height is None or frames is None:
        return None
    sound = (
        all(type(value) is int for value in (width, height, frames))
        and SMALLEST_SIDE <= min(width, height)
        and max(width, height) <= LARGEST_SIDE
    )
    if not sound or width * height > limits.pixels or not 1 <= frames <= limits.frames:
        raise BadVideo(
            label,
            f"metadata of a video with {str(frames):.20} frames of {str(width):.20}x{str(height):.20} pixels",
            "metadata",
        )
    fps = found.get("fps")
    return (
        width,
        height,
        frames,
        float(fps) if isinstance(fps, int | float) and 0 < fps < 1e6 and math.isfinite(fps) else 0.0,
    )
