"""Videos cut at their shot changes: every piece has exactly its frames."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.prepare.run import Options, prepare
from megatron_videogpt.data.prepare.scene_cuts import cut_scenes, detect_cuts
from megatron_videogpt.data.video.container import Blob
from tests.clips import EVERY_CONTAINER, SCENES, SHOTS, TALL, TRAILER, more

from .test_prepare import mixed_folder, samples, tool


@pytest.fixture
def source(videos: Path, tmp_path: Path) -> Path:
    """See `mixed_folder`."""
    return mixed_folder(videos, tmp_path / "source")


@pytest.mark.parametrize("name", [TRAILER, SCENES, TALL, *EVERY_CONTAINER, *more()])
def test_pieces_are_the_sources_frames_and_span_no_cut(videos: Path, name: str) -> None:
    pytest.importorskip("scenedetect")
    path = videos / name
    cuts, frames = detect_cuts(path), read_frames(path, range(probe(path).frames))
    pieces = cut_scenes(path, path.suffix, 8)
    assert pieces and [piece.data for piece in pieces] == [
        piece.data for piece in cut_scenes(Blob(name, path.read_bytes()), path.suffix, 8)
    ]
    for piece in pieces:
        video = Blob(f"piece{piece.suffix}", piece.data)
        assert probe(video).frames == piece.frames >= 8 and piece.suffix == path.suffix
        np.testing.assert_array_equal(
            read_frames(video, range(piece.frames)), frames[piece.first : piece.first + piece.frames]
        )
        assert not any(piece.first < cut < piece.first + piece.frames for cut in cuts)
    assert all(before.first + before.frames <= after.first for before, after in zip(pieces, pieces[1:]))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}),
        ("pyramid.mp4", "libx264", {"x264-params": "bframes=5:b-pyramid=2:keyint=12:scenecut=40"}),
        ("hevc.mp4", "libx265", {"x265-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=4:log-level=0"}),
        ("hidden.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("transport.ts", "mpeg2video", {"bf": "2", "g": "12"}),
        ("old.avi", "mpeg4", {"bf": "2", "g": "12"}),
    ],
)
def test_pieces_of_every_kind_of_coding(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Scenes of 30 frames, key frames every 12, references forwards and backwards, across key frames too: what is cut
    out decodes to the same pictures.
    """
    pytest.importorskip("scenedetect")
    random = np.random.RandomState(0)
    pictures = [np.kron(random.randint(0, 256, (20, 24, 3)), np.ones((12, 12, 1))).astype(np.uint8) for _ in range(3)]
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for i in range(90):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.ascontiguousarray(pictures[i // 30][i % 30 :][:144, i % 30 :][:, :176]), format="rgb24"
                    )
                )
            )
        container.mux(stream.encode(None))
    frames = read_frames(path, range(90))
    assert detect_cuts(path) == [30, 60]
    pieces = cut_scenes(path, path.suffix, 4)
    assert pieces[0].first == 0 and pieces[0].frames >= 28
    for piece in pieces:
        assert piece.first // 30 == (piece.first + piece.frames - 1) // 30
        np.testing.assert_array_equal(
            read_frames(Blob(f"x{piece.suffix}", piece.data), range(piece.frames)),
            frames[piece.first : piece.first + piece.frames],
        )


def test_pieces_stay_upright(videos: Path) -> None:
    """A phone's rotation is in the file's header, and must be in the pieces'."""
    pytest.importorskip("scenedetect")
    data = bytearray((videos / SCENES).read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    video = Blob("turned.mp4", bytes(data))
    piece = cut_scenes(video, ".mp4", 8)[1]
    assert (probe(video).width, probe(video).height) == (136, 320)
    np.testing.assert_array_equal(
        read_frames(Blob("x.mp4", piece.data), range(piece.frames)), read_frames(video, range(30, 76))
    )


def test_scenes_become_samples(videos: Path, tmp_path: Path) -> None:
    """Six shots that begin with key frames: nothing is lost but the last, which has 8 frames."""
    pytest.importorskip("scenedetect")
    frames = read_frames(videos / SCENES, range(250))[:, ::4, ::4].astype(np.int16)
    largest = np.argsort(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)))[-5:] + 1
    assert sorted(largest) == detect_cuts(videos / SCENES) == np.cumsum(SHOTS[:-1]).tolist()
    (tmp_path / "list.jsonl").write_text(json.dumps({"video": str(videos / SCENES), "caption": "shots", "key": "b"}))
    code, _, _ = tool(
        tmp_path / "list.jsonl",
        "--scenes",
        "--key-column",
        "key",
        "--output",
        tmp_path / "out",
        "--workers",
        1,
        "--shard-count",
        2,
    )
    assert code == 0
    found = samples(tmp_path / "out")
    assert list(found) == [f"b_{i:04d}" for i in range(5)]
    assert [(meta["first_frame"], meta["frames"]) for _, _, meta in found.values()] == [
        (0, 30),
        (30, 46),
        (76, 61),
        (137, 50),
        (187, 55),
    ]
    assert [(meta["start"], meta["end"]) for _, _, meta in found.values()] == [
        (0.0, 1.2),
        (1.2, 3.04),
        (3.04, 5.48),
        (5.48, 7.48),
        (7.48, 9.68),
    ]
    assert all(meta["caption"] == "shots" and meta["fps"] == pytest.approx(25) for _, _, meta in found.values())


def test_without_pyscenedetect_scenes_are_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    monkeypatch.setitem(sys.modules, "scenedetect.common", None)
    with pytest.raises(ValueError, match="pip install scenedetect-headless"):
        prepare(Options((str(source),), scenes=True), tmp_path / "out", 0, 60)
    assert not (tmp_path / "out").exists()
