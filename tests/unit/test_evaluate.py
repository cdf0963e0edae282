"""The meter of bodies against pictures made by hand, simple guesses against closed forms, and both on real scenes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_videogpt.codec.tiny import TinyCodec
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.config.schema_data import SCENES
from megatron_videogpt.data.sources.scenes import BACKGROUND, BLUE, GROUND, RED
from megatron_videogpt.errors import UserError
from megatron_videogpt.evaluate.measure import score_all
from megatron_videogpt.evaluate.meter import colour_mask, share_found
from megatron_videogpt.evaluate.report import LARGEST, animate, plot, score_table
from megatron_videogpt.evaluate.scenes import (
    Scene,
    check_measurable,
    extrapolated,
    fill,
    read_scenes,
    repeated,
    round_trip,
)
from megatron_videogpt.sample.evaluate import linear_error, linear_extrapolation

Y, X = np.mgrid[:64, :64]
RADIUS = 8
MIDDLE = (X - 32) ** 2 + (Y - 32) ** 2


def disc(x: float = 32, y: float = 32, radius: float = RADIUS) -> np.ndarray:
    return (X - x) ** 2 + (Y - y) ** 2 <= radius**2


def painted(*areas: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    picture = np.full((64, 64, 3), BACKGROUND, np.uint8)
    for area, colour in areas:
        picture[area] = colour
    return picture


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        (disc(), 1),
        (np.zeros((64, 64), bool), 0),
        # The true area is 197 pixels, the radius of that circle 7.92.
        (disc(x=39), 1),
        (disc(x=40), 0),
        (disc(y=25), 1),
        (disc(y=24), 0),
        (disc(radius=6), 1),  # 113 of 197 pixels
        (disc(radius=5), 0),  # 81
        (disc(radius=9), 1),  # 253
        (disc(radius=10), 0),  # 317
        (disc() & (X != 32), 0),  # two halves of 90 pixels
        (disc() & (X <= 32), 1),  # 107 pixels, their middle 3.4 to the left
        (disc() & (MIDDLE >= 5**2), 1),  # a ring of 128 pixels
        (disc() & (MIDDLE >= 7**2), 0),  # of 60
        (disc() | disc(x=8, radius=5), 1),  # the smaller piece does not count
        (disc() | disc(x=8, radius=9), 0),  # the larger one does
        (disc() | (Y == 20), 1),  # a line that does not touch
    ],
)
def test_a_disc_is_found_where_its_largest_piece_is_about_it(shown: np.ndarray, found: int) -> None:
    assert share_found(painted((shown, RED)), disc()[None], [RED], True) == found


def test_a_share_of_the_bodies_is_found() -> None:
    masks = np.stack([disc(x=16), disc(x=48)])
    both = painted((masks[0], RED), (masks[1], BLUE))
    assert share_found(both, masks, [RED, BLUE], True) == 1
    assert share_found(painted((masks[1], BLUE)), masks, [RED, BLUE], True) == 0.5
    assert share_found(painted((masks[0], BLUE), (masks[1], RED)), masks, [RED, BLUE], True) == 0
    assert share_found(painted((masks[0], GROUND), (masks[1], GROUND)), masks, [RED, BLUE], True) == 0


def test_what_is_hidden_does_not_count() -> None:
    masks = np.stack([disc(), (X < 2) & (Y < 4)])  # 8 of 4096 pixels
    assert share_found(painted((disc(), RED)), masks, [RED, BLUE], True) == 1
    assert math.isnan(share_found(painted(), masks[1:], [BLUE], True))


def test_boxes_are_found_by_colour_where_half_overlaps() -> None:
    masks = np.stack([(X // 8 == place) & (Y >= 24) & (Y < 48) for place in (1, 3, 5)])
    colours = [RED, BLUE, RED]
    true = painted(*zip(masks, colours))
    assert share_found(true, masks, colours, False) == 1
    assert share_found(painted((masks[0], RED), (masks[1], BLUE)), masks, colours, False) == 1  # half of red
    assert share_found(painted((masks[0] & (X > 8), RED), (masks[1], BLUE)), masks, colours, False) == 0.5
    # By n of 8 pixels to the side: (8 - n) / (8 + n).
    assert [share_found(np.roll(true, n, axis=1), masks, colours, False) for n in (2, 3)] == [1, 0]


def test_a_pixel_is_of_the_nearest_colour_unless_it_is_far_from_all() -> None:
    def mixed(share: float, other: tuple[int, int, int]) -> np.ndarray:
        return np.rint(share * np.array(RED) + (1 - share) * np.array(other)).astype(np.uint8)

    colours = np.stack([np.array(RED), mixed(0.55, BACKGROUND), mixed(0.45, BACKGROUND), mixed(0.55, BLUE)])
    assert colour_mask(colours.astype(np.uint8), RED).tolist() == [True, True, False, False]
    assert colour_mask(np.array([[200, 0, 200], [255, 0, 0], [0, 255, 0]], np.uint8), RED).tolist() == [
        False,
        True,
        False,
    ]


def test_what_the_meter_cannot_tell_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="two of one colour"):
        share_found(painted(), np.stack([disc(), disc()]), [RED, RED], True)
    with pytest.raises(ValueError, match="do not fit"):
        share_found(painted(), disc()[None], [RED, BLUE], True)


def test_linear_extrapolation_in_closed_form() -> None:
    values = [100, 90, 102, 110, 120, 255]  # goes on by 12 a frame from the third
    video = np.repeat(np.array(values, np.uint8), 8 * 8 * 3).reshape(6, 8, 8, 3)
    guess = linear_extrapolation(video, 3, 14)[:, 0, 0, 0] * 255
    assert guess.tolist() == pytest.approx([min(255, 102 + 12 * k) for k in range(1, 15)])
    assert linear_extrapolation(video, 2, 12)[-1].max() == 0, "10 less a frame from 90 on"
    assert (linear_extrapolation(video, 1, 3) * 255).unique().tolist() == [100], "nothing to go by"
    # 114, 126, 138 against 110, 120, 255; frames that the video lacks do not count.
    assert linear_error(video, 3, 9) == pytest.approx((4**2 + 6**2 + 117**2) / 3 / 255**2)
    straight = np.repeat(np.arange(0, 50, 5, dtype=np.uint8), 192).reshape(10, 8, 8, 3)
    assert linear_error(straight, 4, 6) == pytest.approx(0, abs=1e-20)


def test_clips_fill_the_frames() -> None:
    assert fill((2, 3), 8) == (2, 3, 2, 1) and fill((2, 2), 4) == (2, 2) and fill((9,), 4) == (4,)


def configuration(**changes: object) -> Config:
    config = config_from_dict({"codec": {"name": "tiny"}, "data": {"source": "physics"}})
    physics = replace(config.data.physics, size=64, difficulty=0)
    sampling = replace(config.sample, history=8, clips=(8,), window=16)
    return replace(config, data=replace(config.data, physics=replace(physics, **changes)), sample=sampling)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Two of every kind, 8 frames given and 8 to follow, every fourth frame."""
    return list(read_scenes(configuration(), TinyCodec(), 2, 8, 4))


def test_kinds_that_training_favours_are_measured_like_the_others() -> None:
    found = read_scenes(configuration(scenes=("fall", "bounce", "bounce", "fall", "bounce")), TinyCodec(), 1, 8, 4)
    assert [scene.kind for scene in found] == ["fall", "bounce"]


def test_scenes_are_those_of_the_sample_command_and_known_exactly(scenes: list[Scene]) -> None:
    assert [scene.kind for scene in scenes] == [kind for kind in SCENES for _ in range(2)]
    for scene in scenes:
        assert scene.given == 8 and scene.prompt.truth is not None
        np.testing.assert_array_equal(scene.pictures, np.concatenate([scene.prompt.condition, scene.prompt.truth]))
        assert scene.discs == (scene.kind != "dominoes") and scene.masks.shape == (16, len(scene.colours), 64, 64)
        assert not scene.discs or len(set(scene.colours)) == len(scene.colours), "two discs of one colour"
        np.testing.assert_array_equal(repeated(scene), np.stack([scene.prompt.condition[-1]] * 8))
        guess = linear_extrapolation(scene.pictures, 8, 8) * 255
        np.testing.assert_array_equal(extrapolated(scene), guess.round().to(torch.uint8).numpy())


def test_the_meter_finds_the_bodies_of_the_truth_and_of_its_round_trip(scenes: list[Scene]) -> None:
    codec = TinyCodec()
    guesses = {
        "repeat": [repeated(scene) for scene in scenes],
        "round_trip": [round_trip(scene, codec) for scene in scenes],
        "truth": [scene.truth for scene in scenes],
        "empty": [np.full_like(scene.truth, 255) for scene in scenes],
    }
    scores = score_all(scenes, guesses)
    assert scores["truth"].worst == 1 and scores["truth"].mse == 0
    assert scores["round_trip"].worst >= 0.98 and scores["round_trip"].ratio < 0.05
    assert scores["empty"].mean == 0 and scores["empty"].ratio > 1
    repeat = scores["repeat"]
    assert repeat.ratio == 1 and 0.1 < repeat.mean < 0.6 and repeat.worst == min(repeat.found.values())
    assert repeat.found_by_frame[0] > 0.9 > repeat.found_by_frame[-1]
    for score in scores.values():
        assert np.mean(score.found_by_frame) == pytest.approx(score.mean)
        assert np.mean(score.mse_by_frame) == pytest.approx(score.mse)


def test_pictures_of_the_scores(scenes: list[Scene], tmp_path: Path) -> None:
    guesses = {name: [repeated(scene) for scene in scenes] for name in ("model", "repeat")}
    scores = score_all(scenes, guesses)
    assert score_table(scores).row_count == 2
    plot(scores, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1200, 456)
    animate(scenes[::2], guesses["model"][::2], tmp_path / "scenes.webp")
    with Image.open(tmp_path / "scenes.webp") as picture:
        assert picture.n_frames == 16 and picture.size == (50 + 6 * 108, 20 + 2 * 102 + 12)
    assert (tmp_path / "scenes.webp").stat().st_size <= LARGEST


def test_what_cannot_be_measured_is_refused() -> None:
    codec = TinyCodec()
    assert check_measurable(configuration(), codec).size == 64
    assert check_measurable(configuration(size=32), codec, 96).size == 96
    videos = configuration()
    for config, size, problem in (
        (configuration(difficulty=1), None, "difficulty 1; only"),
        (replace(videos, data=replace(videos.data, source="videos")), None, "source = 'videos'; only"),
        (configuration(size=32), None, "frames of 32x32 pixels .* a multiple of 16 from 48 to 3072"),
        (replace(videos, model=replace(videos.model, patch_size=4)), 48, "a multiple of 32"),
    ):
        with pytest.raises(UserError, match=problem):
            check_measurable(config, codec, size)


def test_a_late_truth_loses_bodies_and_a_faded_one_all_of_them(scenes: list[Scene]) -> None:
    """What stands in docs/evaluating.md, on fewer scenes."""
    late = {f"late {n}": [scene.pictures[8 - n : 16 - n] for scene in scenes] for n in (1, 2)}
    paper = np.array(BACKGROUND)
    faded = {
        f"faded {share}": [np.rint(paper + share * (scene.truth - paper)).astype(np.uint8) for scene in scenes]
        for share in (0.4, 0.55)
    }
    scores = score_all(scenes, {"repeat": [repeated(scene) for scene in scenes], **late, **faded})
    assert scores["late 1"].mean > 0.9 and 0.4 < scores["late 2"].mean < 0.8
    assert scores["faded 0.4"].mean == 0 and scores["faded 0.55"].mean == 1
