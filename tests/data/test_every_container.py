"""Frame i is the i-th frame of a sequential decode, in every container and codec that PyAV's FFmpeg writes: from a
path, from bytes and from a shard, compared by the number that each picture carries.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest

from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.dataset import open_index
from megatron_videogpt.data.video.container import Blob
from tests.numbered import encode, number_of, sequential

FRAMES = 60
SUFFIX = {
    "matroska": "mkv",
    "mpegts": "ts",
    "mpeg": "mpg",
    "asf": "wmv",
    "ogg": "ogv",
    "ipod": "m4v",
    "ismv": "mp4",
    "3g2": "3gp",
    "yuv4mpegpipe": "y4m",
    "dvd": "vob",
    "svcd": "mpg",
    "vcd": "mpg",
    "mpeg2video": "mpg",
    "mpeg1video": "mpg",
    "f4v": "mp4",
}


@dataclass(frozen=True)
class Way:
    """How pictures are encoded.  containers: FFmpeg's names, divided by white space."""

    codec: str
    structure: str
    containers: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    between: int = 0
    size: tuple[int, int] = (64, 64)


OLDER = "mp4 mov matroska avi mpegts asf mpeg ismv 3gp"
MANY = "mp4 mov matroska avi mpegts flv asf mpeg ismv 3gp"
WAYS = (
    Way("libx264", "no B-frames", MANY),
    Way("libx264", "B-frames", MANY + " ipod f4v vob", between=3),
    Way("libx264", "open groups", MANY + " ipod f4v vob", {"x264-params": "open-gop=1"}, between=3),
    Way("libx264", "pyramid", "mp4 matroska avi mpegts mpeg", {"x264-params": "bframes=7:b-adapt=0"}, between=7),
    Way("libx264", "intra", "mp4 avi mpegts flv", {"x264-params": "keyint=1"}),
    Way("libx264", "intra refresh", "mp4 matroska avi mpegts", {"intra-refresh": "1"}),
    Way("libx264", "interlaced", "mp4 matroska avi mpegts", {"flags": "+ildct+ilme"}, between=2),
    Way("libx265", "open groups", "mp4 matroska mpegts", {"x265-params": "log-level=none:open-gop=1:keyint=12"}),
    Way("libx265", "closed groups", "mp4 matroska mpegts", {"x265-params": "log-level=none:open-gop=0:keyint=12"}),
    Way("mpeg4", "no B-frames", OLDER),
    Way("mpeg4", "B-frames", OLDER + " ipod", between=2),
    Way("mpeg4", "quarter pixels", "mp4 avi", {"flags": "+qpel"}, between=2),
    Way("mpeg2video", "B-frames", "mp4 mov matroska avi mpegts mpeg vob dvd svcd mpeg2video asf", between=2),
    Way("mpeg2video", "interlaced", "matroska avi mpegts mpeg vob", {"flags": "+ildct+ilme"}, between=2),
    Way("mpeg1video", "B-frames", "mp4 matroska avi mpegts mpeg vcd mpeg1video", between=2),
    Way("libvpx", "no hidden frames", "matroska webm avi", {"cpu-used": "8", "deadline": "realtime"}),
    Way("libvpx", "hidden frames", "matroska webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    Way("libvpx-vp9", "no hidden frames", "mp4 matroska webm", {"cpu-used": "8", "deadline": "realtime"}),
    Way("libvpx-vp9", "hidden frames", "matroska webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "6"}),
    Way("mjpeg", "intra", "mp4 mov matroska avi asf", pixels="yuvj420p"),
    Way("ffv1", "intra", "matroska avi mp4"),
    Way("huffyuv", "intra", "avi", pixels="yuv422p"),
    Way("utvideo", "intra", "avi"),
    Way("prores_ks", "intra", "mov matroska", pixels="yuv422p10le"),
    Way("dnxhd", "intra", "mov", {"profile": "dnxhr_sq"}, "yuv422p", size=(256, 128)),
    Way("png", "intra", "mov avi", pixels="rgb24"),
    Way("jpeg2000", "intra", "mov avi"),
    Way("rawvideo", "intra", "avi matroska yuv4mpegpipe"),
    Way("gif", "palettes", "gif", pixels="rgb8"),
    Way("cinepak", "keys and inter", "avi mov", pixels="rgb24"),
    Way("qtrle", "keys and inter", "mov", pixels="rgb24"),
    Way("msmpeg4", "no B-frames", "avi asf"),
    Way("msmpeg4v2", "no B-frames", "avi asf"),
    Way("wmv1", "no B-frames", "asf avi"),
    Way("wmv2", "no B-frames", "asf avi"),
    Way("flv", "no B-frames", "flv"),
    Way("h263", "no B-frames", "3gp avi mov", size=(128, 96)),
    Way("h263p", "no B-frames", "avi"),
    Way("snow", "no B-frames", "avi"),
    Way("flashsv", "keys and inter", "flv", pixels="bgr24"),
    Way("libtheora", "no B-frames", "ogg"),
    Way("libxvid", "packed B-frames", "avi", between=2),
    Way("libsvtav1", "hidden frames", "mp4 matroska webm", {"preset": "12"}),
    Way("wmv3", "B-frames", "asf"),
)
NOT_WRITTEN = {"libtheora/ogg", "libxvid/avi", "wmv3/asf"}
"""PyAV's FFmpeg has no encoder for these; `test_odd_files.py` has a file of packed B-frames, and the real clips of
`tests/videos` and `clips.py` other encoders' work.
"""
FAST = (
    "libx264 B-frames avi",
    "libx264 open groups mpegts",
    "libx264 open groups matroska",
    "libx264 pyramid mp4",
    "libx264 interlaced mp4",
    "libx265 open groups mp4",
    "mpeg4 B-frames avi",
    "mpeg4 B-frames mp4",
    "mpeg2video B-frames mpeg",
    "mpeg2video B-frames mpegts",
    "libvpx hidden frames webm",
    "wmv2 no B-frames asf",
    "gif palettes gif",
)


def cases() -> Iterator[tuple[str, Way, str]]:
    for way in WAYS:
        for container in way.containers.split():
            yield f"{way.codec} {way.structure} {container}", way, container


def written(way: Way, container: str) -> bytes:
    return encode(container, way.codec, range(FRAMES), way.pixels, way.options, size=way.size, between=way.between)


def shard_of(files: dict[str, bytes], folder: Path) -> Path:
    """A tar file of videos without metadata, as other tools write them."""
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


def check(videos: dict[str, bytes], folder: Path, every: int) -> None:
    """Compare single frames, out of order, with the sequential decode of each video."""
    index = open_index(str(shard_of(videos, folder)), Cache(folder / "cache", 0), workers=0)
    assert len(index) == len(videos) and not index.rejected
    for i, (name, data) in enumerate(videos.items()):
        truth = sequential(data)
        path = folder / name
        path.write_bytes(data)
        info = probe(path)
        row = index.entries[i]
        assert len(truth) > 2 * FRAMES // 3, f"{name}: FFmpeg gives {len(truth)} frames"
        assert info.frames == len(truth) == row["frames"], name
        assert (info.width, info.height) == (row["width"], row["height"]), name
        assert info.table == index.table(i), name
        member = Blob(name, index.data(i))
        asked = sorted({*range(0, len(truth), every), len(truth) - 1}, reverse=True)
        for video, table in ((path, b""), (path, info.table), (member, index.table(i)), (member, b"")):
            found = [number_of(read_frames(video, [n], table=table)[0]) for n in asked]
            assert found == [truth[n] for n in asked], f"{name} as {type(video).__name__}, table {bool(table)}"
        several = asked[len(asked) // 2 :: -1] if len(asked) > 2 else asked
        several = sorted(several)
        assert [number_of(frame) for frame in read_frames(member, several, table=info.table)] == [
            truth[n] for n in several
        ], name
        with pytest.raises(BadVideo) as caught:
            read_frames(member, [len(truth)], table=info.table)
        assert caught.value.kind == "too_short", name


def test_a_dozen_containers(tmp_path: Path) -> None:
    ways = {name: (way, container) for name, way, container in cases()}
    videos = {}
    for number, name in enumerate(FAST):
        way, container = ways[name]
        videos[f"{number:03d}.{SUFFIX.get(container, container)}"] = written(way, container)
    check(videos, tmp_path, every=9)


@pytest.mark.long
def test_every_container(tmp_path: Path) -> None:
    """None wrong, none lost, of at least 80 ways to store a video."""
    videos, missing = {}, set()
    for number, (_, way, container) in enumerate(cases()):
        try:
            data = written(way, container)
        except (av.FFmpegError, ValueError):
            missing.add(f"{way.codec}/{container}")
            continue
        videos[f"{number:03d}.{SUFFIX.get(container, container)}"] = data
    assert missing == NOT_WRITTEN
    assert len(videos) >= 80
    check(videos, tmp_path, every=4)
