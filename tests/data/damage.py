"""A damaged case, and the small clips and tar files that cases are made of."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import av

from tests.clips import BIRD, CINEPAK, ODD, SOUND, TRAILER

DAMAGE = frozenset(
    {"unreadable", "truncated", "no_frames", "too_large", "too_small", "too_elongated", "too_short"}
)  # what damaged bytes of a video may give


TAR_DAMAGE = DAMAGE | {"corrupt_tar", "unsafe_name", "extension", "metadata", "incomplete"}


FRAMES = 14  # of the small clips


SOURCES = (TRAILER, BIRD, SOUND, CINEPAK, ODD)


@dataclass
class Case:
    """files: written into the case's folder; exactly: kinds of rejection and their number; allowed: kinds that may come
    instead; samples: that can be read.
    """

    files: dict[str, bytes]
    exactly: Counter[str] | None = None
    allowed: frozenset[str] = frozenset()
    samples: int | None = None


def small_clips(videos: Path) -> dict[str, bytes]:
    """The first packets of real clips in their own containers, without re-encoding."""
    clips = {}
    for name in SOURCES:
        stem, suffix = name.split(".")
        target = io.BytesIO()
        with (
            av.open(str(videos / name)) as source,
            av.open(target, "w", format={"mkv": "matroska"}.get(suffix, suffix)) as container,
        ):
            stream = source.streams.video[0]
            copy = container.add_stream_from_template(stream)
            for number, packet in enumerate(source.demux(stream)):
                if number == FRAMES or not packet.size:
                    break
                packet.stream = copy
                container.mux(packet)
        clips[name] = target.getvalue()
    return clips


def tar_of(
    members: list[tuple[str, bytes]], kinds: dict[str, bytes] | None = None, tar_format: int = tarfile.PAX_FORMAT
) -> bytes:
    """A tar file; kinds: types of members that are no regular files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            info.linkname = "/etc/passwd" if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def pairs(clips: dict[str, bytes], rng: random.Random, count: int) -> list[tuple[str, bytes]]:
    """``count`` good samples (video and metadata), their keys ``good_0`` and so on."""
    members = []
    for i in range(count):
        name = rng.choice(sorted(clips))
        members += [
            (f"good_{i}.{name.split('.')[1]}", clips[name]),
            (f"good_{i}.json", json.dumps({"caption": "a clip"}).encode()),
        ]
    return members


def flip(data: bytes, rng: random.Random, count: int, begin: int = 0, end: int | None = None) -> bytes:
    """Change some bytes between begin and end."""
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(begin, min(end or len(data), len(data)))] ^= rng.randrange(1, 256)
    return bytes(changed)
