"""Inputs of sampling: which files a folder gives and what their results are called, which frames are given and which
are truth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.sources.physics import render_scene
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.sample.prompts import Source, find_sources, plan, read_prompt
from tests.fakes import CONFIG, Joining, Unshuffle, plain

SETTINGS = SampleConfig(clips=(3, 2), window=9, steps=2, guidance=1.0)


@pytest.mark.parametrize(
    ("history", "frames", "first", "given"),
    [
        (4, 20, 11, 4),  # 20 frames: 5 true ones, and the 4 before them
        (1, 20, 14, 1),
        (99, 20, 9, 6),  # window 9 - clip 3 leaves room for 6
        (4, 7, 0, 2),  # all that is there before the true ones
        (4, 5, 1, 4),  # too short for a truth: the last ones
        (0, 20, 14, 1),  # something has to be continued
    ],
)
def test_the_settings_history_is_how_many_frames_before_the_truth_are_given(tmp_path, history, frames, first, given):
    write_video(tmp_path / "in.mp4", np.concatenate([plain(10 * n, 1, 32, 32) for n in range(frames)]), 24)
    config = replace(CONFIG, sample=replace(SETTINGS, history=history))
    prompt = read_prompt(Source("x", tmp_path / "in.mp4"), config, Unshuffle())
    shown = prompt.condition.mean((1, 2, 3))
    assert len(shown) == given and np.abs(shown - 10 * np.arange(first, first + given)).max() <= 3
    assert (0 if prompt.truth is None else len(prompt.truth)) == (5 if frames > 5 else 0)
    # A scene, which has no end, is given as many from its beginning.
    scene = read_prompt(Source("s", scene=("fall", 7)), config, Unshuffle())
    assert len(scene.condition) == max(1, min(history, 6)) and len(scene.truth) == 5


@pytest.mark.parametrize(
    ("codec", "frames", "history", "expected"),
    [
        (Unshuffle(), 12, None, (1, 7, 12)),  # window 9 - clip 3 leaves room for 6
        (Unshuffle(), 8, None, (0, 3, 8)),
        (Unshuffle(), 5, None, (0, 5, 5)),  # not more frames than are asked for: continue what is there
        (Unshuffle(), 30, 4, (0, 4, 9)),
        (Unshuffle(), 6, 4, (0, 4, 6)),  # truth ends early
        (Unshuffle(), 4, 4, (0, 4, 4)),
        (Joining(), 26, None, (1, 6, 26)),  # 7 latent frames: 2 given (5 frames), 5 new (20 frames)
        (Joining(), 13, 3, (0, 9, 13)),
    ],
)
def test_which_frames_are_given_and_which_are_truth(codec, frames, history, expected):
    assert plan(frames, history, SETTINGS, codec) == expected


def test_a_folder_gives_its_videos_and_images_in_order_and_clashing_names_get_numbers(tmp_path):
    for name in ("b.mp4", "a.MP4", "sub/b.png", "sub/B.webm", "sub/b_2.gif", "notes.txt", "out/b.mp4", "metrics.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_sources([tmp_path, Path("b.avi")], [("fall", 3), ("fall", 3)], tmp_path / "out")
    assert [(source.name, str(source).replace(f"{tmp_path}/", "")) for source in found] == [
        ("a", "a.MP4"),
        ("b", "b.mp4"),
        ("metrics_2", "metrics.jpg"),  # the folder's metrics.json is the comparison
        ("B_2", "sub/B.webm"),
        ("b_3", "sub/b.png"),
        ("b_2_2", "sub/b_2.gif"),
        ("b_4", "b.avi"),
        ("fall_3", "fall/3"),
        ("fall_3_2", "fall/3"),
    ]
    with pytest.raises(ValueError, match="no video or image in it"):
        find_sources([tmp_path / "out"], [], tmp_path)


def test_a_video_is_cut_resized_and_thinned(tmp_path):
    write_video(tmp_path / "in.mp4", np.concatenate([plain(8 * n, 1, 64, 128) for n in range(20)]), 24)
    prompt = read_prompt(Source("x", tmp_path / "in.mp4"), CONFIG, Unshuffle(), None, 2)
    # Every second frame of 20: the last five are true, the four before them given; H.264 is not exact.
    assert (prompt.name, prompt.fps) == ("x", pytest.approx(12)) and prompt.condition.shape == (4, 16, 32, 3)
    shown = np.concatenate([prompt.condition, prompt.truth]).mean((1, 2, 3))
    assert np.abs(shown - 16 * np.arange(1, 10)).max() <= 3
    again = read_prompt(Source("x", tmp_path / "in.mp4"), CONFIG, Unshuffle(), 18, 1)
    assert len(again.condition) == 18 and len(again.truth) == 2
    assert read_prompt(Source("x", tmp_path / "in.mp4"), CONFIG, Unshuffle(), 20, 1).truth is None
    with pytest.raises(ValueError, match=r"in\.mp4: --history 11 needs 11 frames, the video has 10 at this interval"):
        read_prompt(Source("x", tmp_path / "in.mp4"), CONFIG, Unshuffle(), 11, 2)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff"])
def test_an_image_is_a_history_of_one_upright_frame(tmp_path, ending):
    path = tmp_path / f"photo.{ending}"
    picture = plain(40, 1, 64, 32)[0]
    picture[:32] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(path, exif=exif if ending in ("jpg", "png", "webp") else Image.Exif())
    prompt = read_prompt(Source("photo", path), CONFIG, Joining(), 7, 3)
    assert prompt.condition.shape == (1, 32, 16, 3) and prompt.truth is None and prompt.fps == 8
    top, bottom = (40, 200) if ending in ("jpg", "png", "webp") else (200, 40)
    assert abs(int(prompt.condition[0, 4, 8, 0]) - top) <= 3 and abs(int(prompt.condition[0, 28, 8, 0]) - bottom) <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_images_of_every_kind_of_pixel_are_read(tmp_path, mode):
    Image.new("L", (48, 32), 255).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(
        tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    )
    assert read_prompt(Source("x", next(tmp_path.iterdir())), CONFIG, Unshuffle()).condition.shape == (1, 16, 32, 3)


def test_16_bits_of_grey_become_8(tmp_path):
    Image.fromarray(np.full((32, 32), 100 * 256 + 7, np.uint16)).save(tmp_path / "x.png")
    assert (read_prompt(Source("x", tmp_path / "x.png"), CONFIG, Unshuffle()).condition == 100).all()


def test_images_that_cannot_be_used_are_one_line(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 64)).save(path)
    whole = path.read_bytes()
    small = replace(CONFIG, data=DataConfig(longest_side=32, max_megapixels=0.004))
    for content, config, message in [
        (whole, small, "64x64 pixels, more than data.max_megapixels=0.004"),
        (whole[: len(whole) // 2], CONFIG, "not a readable image"),
        (b"text", CONFIG, "not a readable image"),
        (b"", CONFIG, "empty file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path}: {message}") as caught:
            read_prompt(Source("x", path), config, Unshuffle())
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        read_prompt(Source("x", path), CONFIG, Unshuffle())
    # A header that claims 40,000 x 40,000 pixels is refused before they are allocated.
    path.write_bytes(whole[:16] + (40_000).to_bytes(4, "big") * 2 + whole[24:])
    with pytest.raises(ValueError, match="x.png: "):
        read_prompt(Source("x", path), CONFIG, Unshuffle())


def test_a_scene_knows_its_future():
    prompt = read_prompt(Source("s", scene=("fall", 7)), CONFIG, Unshuffle(), None, 2)
    frames = render_scene(replace(CONFIG.data.physics, scenes=("fall",)), 7, 9, 2)
    assert (
        np.array_equal(prompt.condition, frames[:4]) and np.array_equal(prompt.truth, frames[4:]) and prompt.fps == 12
    )
    joined = read_prompt(Source("s", scene=("fall", 7)), CONFIG, Joining(), 3, 1)
    assert (len(joined.condition), len(joined.truth)) == (9, 20)
