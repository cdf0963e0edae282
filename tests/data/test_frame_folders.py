"""SkyTimelapse in its layout, folders of frames, as a miniature: to videos, to shards, to the samples of its recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.geometry import codec_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.decode import probe, read_clip
from megatron_videogpt.data.prepare.frames import scaled
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.sources.open import open_source
from tests.miniatures import frames_of_a_video

ROOT = Path(__file__).resolve().parents[2]
CLIPS = {"a/a_1": 40, "a/a_2": 34, "b-c/b-c_1": 36, "b-c/b-c_2": 3}
"""Short videos of long ones, and their frames."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sky_train with two folders of which nothing can be made, and its videos."""
    home = tmp_path_factory.mktemp("sky")
    for number, (name, count) in enumerate(CLIPS.items()):
        frames_of_a_video(home / "sky_train" / name, count, seed=number)
    frames_of_a_video(home / "sky_train/d/d_1", 2)
    (home / "sky_train/d/d_1/d_frames_98.jpg").write_bytes(b"\xff\xd8\xff broken")
    frames_of_a_video(home / "sky_train/d/d_2", 1, (320, 240))
    frames_of_a_video(home / "sky_train/d/d_3", 1)
    (home / "sky_train/d/d_2/d_frames_97.jpg").rename(home / "sky_train/d/d_3/d_frames_98.jpg")
    (home / "sky_train/readme.txt").write_text("not a picture")
    (home / "sky_train/a/a_1/._a_frames_97.jpg").write_bytes(b"Mac OS X")
    return home


def to_videos(home: Path, *more: str) -> int:
    words = [home / "sky_train", "--size", "256", "--output", home / "videos/sky_train", "--workers", "0", *more]
    return main(["data", "frames", *map(str, words)])


def test_folders_become_videos_in_order(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames 97, 98, ... 136 are in order as numbers, and not as words."""
    assert to_videos(made) == 0
    out, err = capsys.readouterr()
    assert f"{len(CLIPS)} videos, {sum(CLIPS.values())} frames; 0 were there, 2 folders were left out" in out
    assert "d_frames_98.jpg: not a readable picture" in err
    assert "320x240 pixels, where the folder's first picture has 320x180" in err and len(err.splitlines()) == 2
    for name, count in CLIPS.items():
        video = made / "videos/sky_train" / f"{name}.mp4"
        info = probe(video)
        assert (info.frames, info.width, info.height) == (count, 256, 256)
        brightness = read_clip(video, range(count), 256, 256).mean((1, 2, 3))
        assert (np.diff(brightness) > 1).all()
    left = sorted(path.name for path in (made / "videos").rglob("*") if path.is_file())
    assert left == sorted(f"{Path(name).name}.mp4" for name in CLIPS)
    assert to_videos(made) == 0 and "0 videos, 0 frames; 4 were there" in capsys.readouterr().out


@pytest.mark.parametrize(("height", "width"), [(360, 640), (240, 320), (256, 256), (100, 333)])
def test_frames_are_scaled_and_cropped_as_published(height: int, width: int) -> None:
    """Bilinear by the two neighbours of each place, without antialiasing, and the square in the middle."""
    picture = np.random.RandomState(0).randint(0, 256, (1, height, width, 3), np.uint8)
    found = scaled(picture, 256)
    factor = max(256 / height, 256 / width)
    sides = [256 if side * factor < 256.5 else math.ceil(side * factor) for side in (height, width)]

    def weights(side: int, full: int) -> torch.Tensor:
        """[full, side]: of each new line, what the old ones have."""
        place = ((torch.arange(full, dtype=torch.float64) + 0.5) * side / full - 0.5).clamp(0, side - 1)
        return (1 - (place[:, None] - torch.arange(side)).abs()).clamp(min=0)

    rows, columns = weights(height, sides[0]), weights(width, sides[1])
    wanted = torch.einsum("yh,hwc,xw->yxc", rows, torch.from_numpy(picture[0]).double(), columns).numpy()
    top, left = (sides[0] - 256) // 2, (sides[1] - 256) // 2
    assert found.shape == (1, 256, 256, 3)
    assert np.abs(found[0] - wanted[top : top + 256, left : left + 256]).max() <= 0.51


def test_skytimelapse(made: Path) -> None:
    """Both recipes on the miniature: to shards, and to the samples of training."""
    to_videos(made)
    recipe, out = ROOT / "examples/datasets/skytimelapse.toml", made / "shards/sky_train"
    words = ["--recipe", recipe, made / "videos/sky_train", "--output", out, "--workers", "0"]
    assert main(["data", "prepare", *map(str, words)]) == 0
    index = load_index(out)
    assert {index.key(i): index.meta(i)["frames"] for i in range(len(index))} == {
        name.replace("/", "_"): count for name, count in CLIPS.items()
    }
    assert not [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    overrides = [f"data.path={out}", f"data.cache={made / 'cache'}", "codec.name=tiny", "data.validation_fraction=0.3"]
    config = load_config(ROOT / "examples/vidgpt/skytimelapse.toml", overrides)
    source = open_source(config.data, codec_geometry(CodecConfig()))
    assert len(source.train) + len(source.validation) == 3, "one is too short"
    for split in (source.train, source.validation):
        for plan in (split.plans(0, [number])[0] for number in range(len(split))):
            pixels = split.job(plan).read().pixels
            assert pixels is not None and pixels.shape == (33, 256, 256, 3)
            assert (np.diff(pixels.mean((1, 2, 3))) > 1).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--size", "8"], "--size=8: must be 0 or at least 16"),
        (["--fps", "0"], "--fps=0: must be above 0"),
        (["--min-frames", "0"], "--min-frames=0: must be at least 1"),
        (["--workers", "-1"], "--workers=-1: must be 0 or more"),
        (["--min-frames", "90"], "only folders of fewer than 90 pictures"),
    ],
)
def test_refusals_in_one_line(made: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_videos(made, *more) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_folder_without_pictures_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, words in ((tmp_path, "no pictures (looked for .jpeg, .jpg, .png)"), (tmp_path / "x", "no such folder")):
        assert main(["data", "frames", str(source), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
