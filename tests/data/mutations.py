"""Damaged and hostile inputs made from real clips: each case is a pure function of its number.

A case is a folder with one tar file (or one video) and what must come of it: how many samples, and which kinds of
rejection, exactly or at most.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
from collections import Counter
from collections.abc import Callable

import av
import numpy as np

from tests.clips import CINEPAK, TRAILER

from .damage import DAMAGE, FRAMES, SOURCES, TAR_DAMAGE, Case, flip, pairs, tar_of


def flipped_video(clips: dict[str, bytes], rng: random.Random) -> Case:
    name = rng.choice(sorted(clips))
    return Case({name: flip(clips[name], rng, rng.choice([1, 4, 32, 256]))}, allowed=DAMAGE)


def flipped_header(clips: dict[str, bytes], rng: random.Random) -> Case:
    """The first kilobyte, or the last one, where mp4 and mkv have their tables."""
    name = rng.choice(sorted(clips))
    data = clips[name]
    begin = rng.choice([0, max(0, len(data) - 1024)])
    return Case({name: flip(data, rng, rng.choice([1, 2, 8]), begin, begin + 1024)}, allowed=DAMAGE)


def truncated_video(clips: dict[str, bytes], rng: random.Random) -> Case:
    name = rng.choice(sorted(clips))
    return Case({name: clips[name][: rng.randrange(1, len(clips[name]))]}, allowed=DAMAGE)


def flipped_tar(clips: dict[str, bytes], rng: random.Random) -> Case:
    data = tar_of(pairs(clips, rng, 3))
    return Case({"a.tar": flip(data, rng, rng.choice([1, 8, 64]))}, allowed=TAR_DAMAGE)


def truncated_tar(clips: dict[str, bytes], rng: random.Random) -> Case:
    """Cut anywhere before the end's mark: one rejection, and every sample whose video lies before the cut."""
    data = tar_of(pairs(clips, rng, 3))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        ends = {info.name: info.offset_data + info.size for info in tar}
    cut = rng.randrange(1, max(ends.values()))
    whole = sum(end <= cut for name, end in ends.items() if not name.endswith(".json"))
    return Case({"a.tar": data[:cut]}, Counter(truncated=1), samples=whole)


def corrupt_tar(clips: dict[str, bytes], rng: random.Random) -> Case:
    """A damaged header of one of the videos: the samples before it remain."""
    members = pairs(clips, rng, 3)
    data = bytearray(tar_of(members))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        places = [info.offset for info in tar if not info.name.endswith(".json")]
    victim = rng.randrange(3)
    data[places[victim] + rng.randrange(0, 156)] ^= rng.choice([1, 2, 4, 0x40])
    return Case({"a.tar": bytes(data)}, Counter(corrupt_tar=1), samples=victim)


def hostile_names(clips: dict[str, bytes], rng: random.Random) -> Case:
    """Names that lead out of the folder, links and devices among good samples."""
    video = clips[SOURCES[0]]
    names = [
        "../evil.mp4",
        "/tmp/evil.mp4",
        "a/../../evil.mp4",
        "..\\evil.mp4",
        "C:\\evil.mp4",
        "line\nbreak.mp4",
        "./../evil.json",
    ]
    special = {
        "s.mp4": tarfile.SYMTYPE,
        "h.mp4": tarfile.LNKTYPE,
        "c.mp4": tarfile.CHRTYPE,
        "b.mp4": tarfile.BLKTYPE,
        "f.mp4": tarfile.FIFOTYPE,
    }
    chosen = rng.sample(names, rng.randrange(1, 5))
    links = rng.sample(sorted(special), rng.randrange(0, 4))
    bad = [(name, video) for name in chosen] + [(name, b"") for name in links]
    members = pairs(clips, rng, 2) + bad
    tar_format = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    return Case(
        {"a.tar": tar_of(members, {name: special[name] for name in links}, tar_format)},
        Counter(unsafe_name=len(bad)),
        samples=2,
    )


def wrong_extensions(clips: dict[str, bytes], rng: random.Random) -> Case:
    members = pairs(clips, rng, 3)
    count = rng.randrange(1, 4)
    for i in range(count):
        name, data = members[2 * i]
        members[2 * i] = (name.rpartition(".")[0] + rng.choice([".exe", ".mp5", ".zip", ".mp4x", ""]), data)
    return Case({"a.tar": tar_of(members)}, Counter(extension=count), samples=3 - count)


def exchanged_extensions(clips: dict[str, bytes], rng: random.Random) -> Case:
    """A video under another container's extension is recognised by its bytes."""
    members = [
        (
            name if name.endswith("json") else name.rpartition(".")[0] + rng.choice([".mp4", ".MKV", ".webm", ".avi"]),
            data,
        )
        for name, data in pairs(clips, rng, 3)
    ]
    return Case({"a.tar": tar_of(members)}, Counter(), samples=3)


def duplicates(clips: dict[str, bytes], rng: random.Random) -> Case:
    members = pairs(clips, rng, 3)
    again = [members[rng.choice([0, 1, 2, 3, 4, 5])] for _ in range(rng.randrange(1, 4))]
    return Case({"a.tar": tar_of(members + again)}, Counter(incomplete=len(again)), samples=3)


def without_video(clips: dict[str, bytes], rng: random.Random) -> Case:
    members = pairs(clips, rng, 3)
    gone = rng.sample(range(3), rng.randrange(1, 3))
    kept = [member for i, member in enumerate(members) if i % 2 or i // 2 not in gone]
    return Case({"a.tar": tar_of(kept)}, Counter(incomplete=len(gone)), samples=3 - len(gone))


def bad_metadata(clips: dict[str, bytes], rng: random.Random) -> Case:
    """No JSON, no object, or a geometry that cannot be: the video says what is true."""
    texts = [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"]
    absurd: list[tuple[object, object, object]] = [
        (10**9, 10**9, 10),
        (-1, 64, 10),
        ("640", "360", "14"),
        (0, 0, 0),
        (640, 360, 10**12),
        (True, 64, 64),
        (1e99, 64, 64),
    ]
    texts += [json.dumps(dict(zip(("width", "height", "frames"), values))).encode() for values in absurd]
    members = pairs(clips, rng, 3)
    count = rng.randrange(1, 4)
    for i in range(count):
        members[2 * i + 1] = (members[2 * i + 1][0], rng.choice(texts))
    return Case({"a.tar": tar_of(members)}, Counter(metadata=count), samples=3)


def lying_metadata(clips: dict[str, bytes], rng: random.Random) -> Case:
    """More frames than the video has: found when they are read."""
    members = [
        ("a.mp4", clips[SOURCES[0]]),
        ("a.json", json.dumps({"width": 320, "height": 180, "frames": FRAMES + rng.randrange(10, 1000)}).encode()),
    ]
    return Case({"a.tar": tar_of(members + pairs(clips, rng, 1))}, Counter(too_short=1), samples=1)


def huge_claims(clips: dict[str, bytes], rng: random.Random) -> Case:
    """A member that claims more bytes than there are, in octal or in base 256."""
    data = bytearray(tar_of([*pairs(clips, rng, 2), ("huge.mp4", b"x" * 512)], tar_format=tarfile.GNU_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        place = tar.getmember("huge.mp4").offset
    size = rng.choice([10**9, 8**11 - 1, 2**40, 2**63 - 1])
    data[place + 124 : place + 136] = b"%011o\0" % size if size < 8**11 else bytes([0x80]) + size.to_bytes(11, "big")
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    return Case({"a.tar": bytes(data)}, Counter(truncated=1), samples=2)


def broken_pax(clips: dict[str, bytes], rng: random.Random) -> Case:
    """Records that do not add up, before a member with a long name."""
    long_name = "x" * 120 + ".mp4"
    data = bytearray(tar_of([*pairs(clips, rng, 2), (long_name, clips[SOURCES[0]])]))
    place = bytes(data).index(b" path=x")
    data[place - 3 : place] = rng.choice([b"999", b"  0", b"abc", b"-12"])
    return Case({"a.tar": bytes(data)}, Counter(corrupt_tar=1), samples=2)


def absurd_picture(clips: dict[str, bytes], rng: random.Random) -> Case:
    data = bytearray(clips[CINEPAK])
    place = bytes(data).index(b"strf") + 12
    data[place : place + 8] = struct.pack("<ii", rng.randrange(8200, 11000), rng.randrange(8200, 11000))
    return Case({"huge.avi": bytes(data)}, Counter(too_large=1), samples=0)


def claimed_frames(clips: dict[str, bytes], rng: random.Random) -> Case:
    """An mp4 table of frames of one byte each, as many as a number can say."""
    data = bytearray(clips[TRAILER])
    count = rng.choice([10**7, 10**8, 2**31, 2**32 - 1])
    for name, values in ((b"stsz", (1, count)), (b"stts", (1, count, 1)), (b"stsc", (1, 1, count, 1))):
        place = bytes(data).index(name) + 8
        data[place : place + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    if rng.randrange(3) == 0:
        # A fragment with as many frames, none of which takes a byte of its table.
        run = struct.pack(">I4sII", 16, b"trun", 0, count)
        track = struct.pack(">I4s", 24 + len(run), b"traf") + struct.pack(">I4sII", 16, b"tfhd", 0, 1) + run
        data = bytearray(clips[TRAILER]) + struct.pack(">I4s", 8 + len(track), b"moof") + track
    return Case({"many.mp4": bytes(data)}, Counter(too_large=1), samples=0)


def no_frames(clips: dict[str, bytes], rng: random.Random) -> Case:
    """Sound without pictures, a video stream without packets, and a file without bytes."""
    suffix, pictures = rng.choice(
        [("mp4", False), ("mkv", False), ("avi", False), ("mp4", True), ("mkv", True), ("", True)]
    )
    if not suffix:
        return Case({"a.tar": tar_of([*pairs(clips, rng, 1), ("e.mp4", b"")])}, Counter(no_frames=1), samples=1)
    target = io.BytesIO()
    with av.open(target, "w", format={"mkv": "matroska"}.get(suffix, suffix)) as container:
        if pictures:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
        else:
            sound = (
                container.add_stream("pcm_s16le", rate=44100)
                if suffix != "mp4"
                else container.add_stream("aac", rate=44100)
            )
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1024), np.int16), "s16", "stereo")
            frame.rate = 44100
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return Case({f"none.{suffix}": target.getvalue()}, Counter(no_frames=1), samples=0)


def garbage(clips: dict[str, bytes], rng: random.Random) -> Case:
    """Text and noise under a video's name, and lists that would have FFmpeg open other files."""
    texts = [
        b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        rng.randbytes(3000),
    ]
    return Case({"noise.mp4": rng.choice(texts)}, Counter(unreadable=1), samples=0)


FAMILIES: dict[Callable[[dict[str, bytes], random.Random], Case], int] = {
    flipped_video: 500,
    flipped_header: 300,
    truncated_video: 300,
    flipped_tar: 150,
    truncated_tar: 150,
    corrupt_tar: 100,
    hostile_names: 100,
    wrong_extensions: 50,
    exchanged_extensions: 20,
    duplicates: 50,
    without_video: 50,
    bad_metadata: 80,
    lying_metadata: 20,
    huge_claims: 30,
    broken_pax: 20,
    absurd_picture: 20,
    claimed_frames: 20,
    no_frames: 20,
    garbage: 20,
}
"""Cases of each family: 2,000 together."""


def make(clips: dict[str, bytes], number: int) -> tuple[str, Case]:
    """(family, case) of a number below 2,000."""
    names = [family for family, count in FAMILIES.items() for _ in range(count)]
    return names[number].__name__, names[number](clips, random.Random(number))
