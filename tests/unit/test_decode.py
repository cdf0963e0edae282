"""Reading videos: frame numbers against a plain sequential decode, sizes against Pillow, bad files against one clear
line.
"""

from __future__ import annotations

import copy
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data import decode
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_clip, read_frames
from megatron_videogpt.data.video import access
from megatron_videogpt.data.video.container import Blob, Limits, limits_of
from megatron_videogpt.data.video.pictures import resize_frames, resized_shape, to_model_range, to_pixels, write_video
from tests import clips


def numbered(frames: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Frames that carry their number as the grey value of their left half."""
    video = np.full((frames, height, width, 3), 128, np.uint8)
    for i in range(frames):
        video[i, :, : width // 2] = 40 + 2 * i
    return video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "numbered.mp4"
    write_video(path, numbered(80), 24)
    return path


def test_probe_and_write_round_trip(clip: Path) -> None:
    info = probe(clip)
    assert (info.frames, info.width, info.height) == (80, 96, 64)
    assert info.fps == pytest.approx(24, abs=1e-3)
    assert np.abs(read_frames(clip, range(80)).astype(int) - numbered(80)).mean() < 2.5
    assert not list(clip.parent.glob("*.partial"))


@pytest.mark.parametrize("indices", [[0], [79], [3, 4, 5], [0, 40, 79], [33, 57, 58]])
def test_frames_by_number(clip: Path, indices: list[int]) -> None:
    """The grey value tells the number; a video with two levels a frame and rounding in YUV leaves less than 0.8 frames
    of doubt.
    """
    numbers = (read_frames(clip, indices)[:, :, 8:40].mean((1, 2, 3)) - 40) / 2
    np.testing.assert_allclose(numbers, indices, atol=0.8)
    offset = (read_frames(clip, range(80))[:, :, 8:40].mean((1, 2, 3)) - 40) / 2
    np.testing.assert_allclose(numbers, offset[indices], atol=1e-6)


@pytest.mark.parametrize("name", [*clips.EVERY_CONTAINER, *clips.more()])
def test_seeking_equals_sequential_decoding(videos: Path, name: str) -> None:
    path = videos / name
    with av.open(str(path)) as container:
        sequential = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert probe(path).frames == len(sequential)
    indices = [len(sequential) // 2, len(sequential) // 2 + 7, len(sequential) - 1]
    np.testing.assert_array_equal(read_frames(path, indices), np.stack([sequential[i] for i in indices]))


def test_time_stamps_and_packets_beat_the_header(videos: Path) -> None:
    with av.open(str(videos / clips.ODD)) as quicktime, av.open(str(videos / clips.CINEPAK)) as avi:
        assert quicktime.streams.video[0].average_rate > 24.3 and avi.streams.video[0].frames == clips.CLAIMED_FRAMES
    assert probe(videos / clips.ODD).fps == pytest.approx(24.0, abs=0.01)
    assert probe(videos / clips.CINEPAK).frames == 68


def test_odd_sizes_are_padded_to_even(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", numbered(3, 33, 17), 10)
    info = probe(tmp_path / "odd.mp4")
    assert (info.width, info.height, info.frames) == (34, 18, 3)


def truncated(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def test_bad_files_give_one_clear_line(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "dot.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1, 1, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((1, 1, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "folder.mp4").mkdir()
    cases = {
        "text.mp4": ("not a readable video", "unreadable"),
        "empty.mp4": ("empty file", "no_frames"),
        "dot.mkv": ("1x1", "too_small"),
        "missing.mp4": ("No such file", "missing"),
        "folder.mp4": ("not a regular file", "unreadable"),
        truncated(clip, tmp_path / "half.mp4", 0.5).name: ("truncated", "truncated"),
        truncated(clip, tmp_path / "head.mp4", 0.01).name: ("not a readable video", "unreadable"),
    }
    for name, (reason, kind) in cases.items():
        with pytest.raises(BadVideo, match=reason) as caught:
            probe(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
        assert caught.value.kind == kind
        if (tmp_path / name).is_file():
            with pytest.raises(BadVideo, match=reason) as again:
                probe(Blob(name, (tmp_path / name).read_bytes()))
            assert again.value.kind == kind


def test_limits_are_checked_before_a_picture_is_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 frames of 96x64 pixels, one below each limit; the options' defaults are the reader's, on which the name of an
    index depends.
    """
    assert limits_of(DataConfig()) == Limits()
    data = clip.read_bytes()
    exact = Limits(bytes=len(data), frames=80, pixels=96 * 64)
    for video in (clip, Blob("clip.mp4", data)):
        assert probe(video, exact).frames == 80
        assert len(read_clip(video, [0, 79], 32, 16, exact)) == 2
    monkeypatch.setattr(access, "_from_entry", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(access, "_from_start", lambda *_: pytest.fail("decoded"))
    for limits, name in (
        (Limits(bytes=len(data) - 1), "max_video_mb"),
        (Limits(frames=79), "max_video_frames"),
        (Limits(pixels=96 * 64 - 1), "max_megapixels"),
    ):
        for video in (clip, Blob("clip.mp4", data)):
            with pytest.raises(BadVideo, match=name) as caught:
                read_clip(video, [0], 32, 16, limits)
            assert caught.value.kind == "too_large"


def test_a_playlist_opens_no_other_file(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    with av.open(str(tmp_path / "list.mp4")) as container:
        assert container.format.name == "concat"  # so FFmpeg would, if allowed
    with pytest.raises(BadVideo, match="not a readable video"):
        probe(tmp_path / "list.mp4")


@pytest.mark.parametrize("name", [*clips.EVERY_CONTAINER, *clips.more()])
def test_clips_equal_frames_resized_one_by_one(videos: Path, name: str) -> None:
    """Against plain sequential decoding; the file's own bytes and the file give the same."""
    path = videos / name
    frames = probe(path).frames
    with av.open(str(path)) as container:
        sequential = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for indices in (range(3), range(frames // 3, frames // 3 + 24, 6), [frames // 2, frames - 1]):
        expected = resize_frames(np.stack([sequential[i] for i in indices]), 96, 16)
        for video in (path, Blob(name, path.read_bytes())):
            np.testing.assert_array_equal(read_clip(video, list(indices), 96, 16), expected)
    np.testing.assert_array_equal(read_clip(path, list(indices), 96, 16, threads=3), expected)


def test_a_clip_is_opened_once_and_only_its_frames_are_converted(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, converted = [], []
    monkeypatch.setattr(
        av, "open", lambda *args, original=av.open, **options: opened.append(args) or original(*args, **options)
    )
    monkeypatch.setattr(
        decode,
        "resize_frames",
        lambda frames, *sizes, original=resize_frames: converted.append(len(frames)) or original(frames, *sizes),
    )
    read_clip(Blob("clip.mp4", clip.read_bytes()), [20, 40, 60], 32, 16)
    assert len(opened) == 1 and converted == [1, 1, 1]


def test_a_picture_too_narrow_to_resize_is_a_bad_video(tmp_path: Path) -> None:
    write_video(tmp_path / "narrow.mp4", numbered(2, 320, 16), 10)
    with pytest.raises(BadVideo, match="below 16 pixels") as caught:
        read_clip(tmp_path / "narrow.mp4", [0], 64, 16)
    assert caught.value.kind == "too_elongated"


def test_rotated_videos_are_turned_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "flat.mp4", numbered(4), 10)
    with av.open(str(tmp_path / "flat.mp4")) as source, av.open(str(tmp_path / "turned.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        copy.set_display_rotation(90)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    flat, turned = read_frames(tmp_path / "flat.mp4", [1]), read_frames(tmp_path / "turned.mp4", [1])
    assert turned.shape == (1, 96, 64, 3)
    assert any(np.array_equal(np.rot90(flat[0], turns), turned[0]) for turns in (1, 3))
    info = probe(tmp_path / "turned.mp4")
    assert (info.width, info.height) == (64, 96)


def test_asking_for_frames_that_are_not_there(clip: Path) -> None:
    with pytest.raises(BadVideo, match="80 frames") as caught:
        read_frames(clip, [10, 80])
    assert caught.value.kind == "too_short"
    for indices in ([], [3, 3], [5, 2], [-1]):
        with pytest.raises(ValueError, match="ascending"):
            read_frames(clip, indices)


def test_bad_video_survives_a_process_boundary() -> None:
    error = copy.copy(BadVideo("a.mp4", "two\nlines"))  # copies by the same rule as a pipe between processes
    assert (error.path, error.reason, str(error)) == ("a.mp4", "two lines", "a.mp4: two lines")


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((640, 360), 320, (320, 176)),
        ((360, 640), 320, (176, 320)),
        ((1280, 720), 320, (320, 176)),
        ((176, 144), 320, (320, 256)),
        ((640, 272), 64, (64, 16)),
        ((64, 64), 64, (64, 64)),
    ],
)
def test_resized_shapes(size: tuple[int, int], limit: int, expected: tuple[int, int]) -> None:
    frames = np.zeros((1, size[1], size[0], 3), np.uint8)
    assert resize_frames(frames, limit, 16).shape == (1, expected[1], expected[0], 3)
    assert resized_shape(*size, limit, 16) == expected


def test_resizing_is_box_halves_then_bicubic_then_centred_crop() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    halved = Image.fromarray(frame.reshape(360, 2, 640, 2, 3).mean((1, 3)).round().astype(np.uint8))
    expected = np.asarray(halved.resize((320, 180), Image.Resampling.BICUBIC))[2:178]
    got = resize_frames(frame[None], 320, 16)[0]
    assert np.abs(got.astype(int) - expected).max() <= 2  # rounding of halves inside the box filter
    with pytest.raises(ValueError, match="longest_side"):
        resize_frames(np.zeros((1, 40, 640, 3), np.uint8), 64, 16)


def test_model_range_is_inverted_exactly() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    video = to_model_range(levels)
    assert video.shape == (1, 3, 16, 16) and video.min() == -1 and video.max() == 1
    np.testing.assert_array_equal(to_pixels(video), levels)
    assert to_pixels(torch.full((1, 3, 8, 8), 7.0)).max() == 255
