"""Files that other readers number wrongly or lose (`tests/odd_videos`): every frame by random access is the one that a
sequential decode gives, and what a decoder marks as corrupt is never given out.
"""

from __future__ import annotations

import io
import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.dataset import open_index
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index
from megatron_videogpt.data.video import access, learned
from megatron_videogpt.data.video.container import DEFAULTS, Blob, Limits
from tests import clips
from tests.numbered import encode, number_of, picture, sequential

ODD = clips.HERE.parent / "odd_videos"
EXPECTED = {
    "xvid_b.avi": [*range(71), 70, *range(72, 97), 99],
    "paff.ts": list(range(30)),
    "cut_after.mkv": list(range(36, 100)),
    "cut_open.mkv": list(range(24, 100)),
    "cover_before_video.mp4": list(range(50)),
    "cut_hevc.mp4": list(range(38, 80)),
}
"""What `ffmpeg` 5.1 decoded, by the numbers in the pictures."""


def numbers(video: Path | Blob, indices: list[int], table: bytes = b"", rows: int = 4) -> list[int]:
    return [number_of(read_frames(video, [index], table=table)[0], rows) for index in indices]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_frame_is_that_of_a_sequential_decode(name: str) -> None:
    path, wanted = ODD / name, EXPECTED[name]
    rows = 3 if name == "cut_hevc.mp4" else 4
    info = probe(path)
    assert info.frames == len(wanted)
    backwards = list(range(len(wanted)))[::-1]
    assert numbers(path, backwards, rows=rows) == wanted[::-1]
    member = Blob(name, path.read_bytes())
    assert numbers(member, backwards[::7], info.table, rows) == wanted[::-1][::7]
    assert numbers(member, backwards[::17], rows=rows) == wanted[::-1][::17]


def test_a_video_without_frames_says_so() -> None:
    """An AVI file that ends where its pictures begin: what a cut by copying packets leaves where it cannot copy any."""
    data = encode("avi", "mpeg4", range(3))
    with pytest.raises(BadVideo, match="no frames|before its first frame") as caught:
        probe(Blob("a.avi", data[: data.index(b"movi") + 4]))
    assert caught.value.kind == "no_frames"


def test_a_table_saves_decoding_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """98 frames; the last one needs the frames from the last entry before it."""
    path = ODD / "xvid_b.avi"
    info = probe(path)
    found = learned.unpack(info.table, path, DEFAULTS)
    assert found is not None and found.count == 98 and len(found.entries) >= 6
    decoded: list[int] = []
    member = Blob("a.avi", path.read_bytes())
    counted = learned.Opened.frames

    def count(self: learned.Opened, packets: object) -> object:
        for frame in counted(self, packets):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(learned.Opened, "frames", count)
    assert number_of(read_frames(member, [97], table=info.table)[0], 4) == 99
    assert 0 < len(decoded) <= 2 * learned.GAP
    # Also where somebody read the file before and had no table, as torchcodec's reader has none.
    access.forget()
    assert numbers(path, [0]) == [0]
    decoded.clear()
    assert numbers(path, [97], info.table) == [99] and 0 < len(decoded) <= 2 * learned.GAP


def test_a_table_that_is_damaged_or_of_another_video_is_not_used() -> None:
    path = ODD / "xvid_b.avi"
    table = probe(path).table
    whole = Blob("a.avi", path.read_bytes())
    assert learned.unpack(table, whole, DEFAULTS) is not None
    assert learned.unpack(table, whole, Limits(frames=97)) is None
    for wrong in (b"", table[:-1], table[:10], b"X" + table[1:], table[:40] + bytes([table[40] ^ 255]) + table[41:]):
        assert learned.unpack(wrong, whole, DEFAULTS) is None, wrong[:12]
        assert numbers(whole, [50], wrong) == [50]
    assert learned.unpack(table, Blob("b.avi", whole.data + b"\0"), DEFAULTS) is None


def test_what_the_decoder_marks_as_corrupt_is_a_bad_sample() -> None:
    path = ODD / "one_damaged_frame.mp4"
    with av.open(str(path)) as container:
        flagged = [number for number, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
    assert flagged == [29] and probe(path).frames == 60
    assert numbers(path, [28, 48]) == [28, 48]
    for video in (path, Blob("a.mp4", path.read_bytes())):
        for asked in ([29], [27, 29, 31]):
            with pytest.raises(BadVideo, match="frame 29 is damaged"):
                read_frames(video, asked)


@pytest.mark.parametrize("ending", ["a last box of size 0", "zeros behind the last box"])
def test_legal_ends_of_an_mp4_file(tmp_path: Path, ending: str) -> None:
    data = bytearray(encode("mp4", "libx264", range(30), between=2, container_options={"movflags": "+faststart"}))
    place = data.index(b"mdat") - 4
    assert int.from_bytes(data[place : place + 4], "big") == len(data) - place  # it comes last
    if ending.startswith("a last"):
        data[place : place + 4] = bytes(4)
    else:
        data += bytes(5000)
    (tmp_path / "a.mp4").write_bytes(data)
    for video in (tmp_path / "a.mp4", Blob("a.mp4", bytes(data))):
        assert probe(video).frames == 30
        assert numbers(video, [29, 15, 0], rows=3) == [29, 15, 0]
    writer = ShardWriter(tmp_path / "shards", "videos")
    writer.add("a", {"mp4": bytes(data)}, {"width": 64, "height": 64, "frames": 30})
    writer.close()
    merge_index(tmp_path / "shards", "videos")
    index = open_index(str(tmp_path / "shards"), Cache(tmp_path / "cache", 0), workers=0)
    assert numbers(Blob("a.mp4", index.data(0)), [29, 3], rows=3) == [29, 3]


def test_edit_lists_and_cuts_in_mp4(tmp_path: Path) -> None:
    """What a player does not show is no frame: a cut by copying packets, which an edit list then begins at frame 20."""
    whole = encode("mp4", "libx264", range(60), between=3, options={"x264-params": "open-gop=1"})
    with av.open(io.BytesIO(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in source.demux(stream) if packet.size):
            if number >= 12:
                packet.stream = copy
                target.mux(packet)
    data = (tmp_path / "cut.mp4").read_bytes()
    truth = sequential(data)
    info = probe(tmp_path / "cut.mp4")
    assert info.frames == len(truth)
    assert numbers(tmp_path / "cut.mp4", list(range(len(truth))), rows=3) == truth


def test_joined_files_whose_times_start_again(tmp_path: Path) -> None:
    """`cat a.ts b.ts`: the times of the second part are those of the first."""
    parts = [
        encode("mpegts", "libx264", numbers_, between=2, container_options={"mpegts_copyts": "1"})
        for numbers_ in (range(30), range(100, 130))
    ]
    joined = b"".join(parts)
    truth = sequential(joined)
    assert truth[:20] == list(range(20)) and truth[-20:] == list(range(110, 130))
    info = probe(Blob("a.ts", joined))
    assert info.frames == len(truth)
    asked = [*range(0, len(truth), 5), len(truth) - 1][::-1]
    for table in (b"", info.table):
        assert numbers(Blob("a.ts", joined), asked, table, rows=3) == [truth[index] for index in asked]


def test_frames_at_uneven_times() -> None:
    times = np.cumsum([1, 4, 1, 1, 9, 2] * 8).tolist()
    for container in ("matroska", "mp4", "webm"):
        codec = "libvpx-vp9" if container == "webm" else "libx264"
        data = encode(container, codec, range(48), rate=Fraction(30), times=times, options={"cpu-used": "8"})
        info = probe(Blob("a", data))
        assert info.frames == 48 and info.fps == pytest.approx(47 / (times[-1] - times[0]) * 30, rel=1e-3)
        assert numbers(Blob("a", data), [47, 30, 11, 4, 0], rows=3) == [47, 30, 11, 4, 0]


def test_the_stream_is_the_default_one_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three video tracks, of which the second is the default; attached pictures are none."""
    with av.open(str(tmp_path / "three.mkv"), "w") as output:
        streams = []
        for place in range(3):
            stream = output.add_stream("libx264", rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition.default if place == 1 else av.stream.Disposition(0)
            streams.append(stream)
        for number in range(10):
            for place, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(picture(100 * place + number), format="rgb24")
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING):
        assert probe(tmp_path / "three.mkv").frames == 10
    assert "three.mkv: 3 video streams; number 1 (64x64, the default one) is read" in caplog.text
    assert numbers(tmp_path / "three.mkv", [3], rows=3) == [103]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        probe(ODD / "cover_before_video.mp4")
    assert not caplog.text
