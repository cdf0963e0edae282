"""Physics scenes: determinism, the laws of motion measured from pixels, and that scenes keep moving."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from megatron_videogpt.config.schema_data import PhysicsConfig
from megatron_videogpt.data.sources.physics import render_scene, scene_kind
from megatron_videogpt.data.sources.scenes import GRAVITY, KINDS, RED


def centre(frame: np.ndarray) -> tuple[float, float]:
    """(x, y) of the red body in pixels."""
    ys, xs = np.nonzero(np.abs(frame.astype(int) - RED).sum(-1) < 60)
    return float(xs.mean()), float(ys.mean())


def test_same_pixels_in_another_process() -> None:
    code = (
        "import hashlib; from megatron_videogpt.config.schema_data import PhysicsConfig as C; from "
        "megatron_videogpt.data.sources.physics import render_scene as r; "
        "print(hashlib.sha256(b''.join(r(C(difficulty=d), 5 + d, 4, 9).tobytes() for d in (0, 1, 2))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(
        b"".join(render_scene(PhysicsConfig(difficulty=d), 5 + d, 4, 9).tobytes() for d in (0, 1, 2))
    ).hexdigest()
    assert there == here


def test_frames_are_a_subset_at_larger_intervals() -> None:
    config = PhysicsConfig(difficulty=1)
    fine = render_scene(config, 3, 13, 1)
    np.testing.assert_array_equal(fine[::4], render_scene(config, 3, 4, 4))


@pytest.mark.parametrize("key", [0, 1, 2, 3])
def test_free_fall_follows_the_parabola(key: int) -> None:
    """Between bounces: second differences of height equal g t^2, horizontal speed constant (rounding:
    a quarter pixel).
    """
    config = PhysicsConfig(scenes=("fall",), fps=24)
    path = np.array([centre(frame) for frame in render_scene(config, key, 8, 3)])
    step = 3 / 24
    np.testing.assert_allclose(np.diff(path[:, 1], 2).mean(), GRAVITY * step**2, atol=0.15)
    assert np.ptp(np.diff(path[:, 0])) < 1.1


@pytest.mark.parametrize("key", [0, 1, 2])
def test_pendulum_keeps_its_length(key: int) -> None:
    path = np.array([centre(frame) for frame in render_scene(PhysicsConfig(scenes=("pendulum",)), key, 16, 4)])
    lengths = np.hypot(path[:, 0] + 0.5 - 32, path[:, 1] + 0.5 - 6)
    assert np.ptp(lengths) < 1.5 and 23 < lengths.mean() < 30


def test_collision_conserves_what_it_should() -> None:
    """Two balls on a frictionless floor: heights stay, and they never overlap or leave the frame."""
    for key in range(4):
        video = render_scene(PhysicsConfig(scenes=("collide",)), key, 16, 3)
        xs, ys = zip(*(centre(frame) for frame in video))
        assert np.ptp(ys) < 0.6 and min(xs) > 6 and max(xs) < 57
        red = [(np.abs(frame.astype(int) - RED).sum(-1) < 60).sum() for frame in video]
        assert np.ptp(red) <= 0.08 * np.mean(red)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("difficulty", [0, 1, 2])
def test_every_scene_moves_from_start_to_end(kind: str, difficulty: int) -> None:
    config = PhysicsConfig(scenes=(kind,), difficulty=difficulty)
    for key in range(3):
        video = render_scene(config, key, 16, 3).astype(np.float32)
        assert video.shape == (16, 64, 64, 3)
        assert ((video[8:] - video[7]) ** 2).mean() > 20, "repeating the last frame would be nearly right"
        if difficulty == 0:
            assert np.abs(np.diff(video[8:], axis=0)).mean() > 0.3, "came to rest"


def test_difficulty_zero_has_a_fixed_palette_and_size_scales() -> None:
    backgrounds = {tuple(render_scene(PhysicsConfig(), key, 1, 1)[0, 2, 2]) for key in range(12)}
    assert len(backgrounds) == 1
    assert len({tuple(render_scene(PhysicsConfig(difficulty=1), key, 1, 1)[0, 2, 2]) for key in range(12)}) > 6
    large, small = render_scene(PhysicsConfig(size=128), 3, 2, 9), render_scene(PhysicsConfig(), 3, 2, 9)
    halved = large.reshape(2, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 2


def test_scene_kind_is_the_kind_drawn() -> None:
    config = PhysicsConfig()
    kinds = [scene_kind(config, key) for key in range(60)]
    assert set(kinds) == set(KINDS)
    for key in range(6):
        alone = render_scene(PhysicsConfig(scenes=(kinds[key],)), key, 2, 3)
        np.testing.assert_array_equal(alone, render_scene(config, key, 2, 3))


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (PhysicsConfig(scenes=("fall", "fly")), "data.physics.scenes"),
        (PhysicsConfig(scenes=()), "data.physics.scenes"),
        (PhysicsConfig(difficulty=3), "data.physics.difficulty"),
        (PhysicsConfig(size=60), "data.physics.size"),
        (PhysicsConfig(fps=0), "data.physics.fps"),
    ],
)
def test_bad_options_are_one_line(config: PhysicsConfig, option: str) -> None:
    with pytest.raises(ValueError, match=option) as caught:
        render_scene(config, 0, 2, 1)
    assert "\n" not in str(caught.value)
