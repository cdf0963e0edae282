"""Deterministic rigid-body videos: pymunk for the motion, Pillow for the pictures (2x supersampling).

A scene is a pure function of (config, seed_key): same pixels in every process, for equal library versions.  What it
shows, without drawing it: `facts.describe_scene`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np

from ...config.schema_data import PhysicsConfig
from ...errors import UserError
from .drawing import draw_backdrop, draw_masks, draw_picture
from .scenes import KINDS, Scene, new_scene

LARGEST_STEP = 1 / 110  # seconds; longer steps let dominoes sink into each other


def check_physics(config: PhysicsConfig) -> None:
    """Raise ValueError, one line, when an option cannot be rendered."""
    unknown = [name for name in config.scenes if name not in KINDS]
    if unknown or not config.scenes:
        raise UserError(
            f"data.physics.scenes={list(config.scenes)}: unknown or no scene kind {unknown}; choose from "
            f"{', '.join(KINDS)}"
        )
    if config.difficulty not in (0, 1, 2):
        raise UserError(f"data.physics.difficulty={config.difficulty}: must be 0, 1 or 2")
    if config.size < 16 or config.size % 16:
        raise UserError(f"data.physics.size={config.size}: must be a multiple of 16, at least 16")
    if not config.fps > 0:
        raise UserError(f"data.physics.fps={config.fps}: must be above 0")


def scene_kind(config: PhysicsConfig, seed_key: int) -> str:
    """The kind of scene that `render_scene` draws for this key (uniform over `config.scenes`)."""
    return _draw_kind(config, random.Random(seed_key))


def build_scene(config: PhysicsConfig, seed_key: int) -> tuple[str, Scene]:
    """Kind and world of a scene as the clock starts; ValueError (one line) for an option out of range."""
    check_physics(config)
    rng = random.Random(seed_key)
    kind = _draw_kind(config, rng)
    scene = new_scene(rng, config.difficulty)
    KINDS[kind](scene)
    return kind, scene


def render_scene(config: PhysicsConfig, seed_key: int, frames: int, interval: int) -> np.ndarray:
    """Simulate one scene and draw every ``interval``-th of its rendered frames.

    Args:
        config: kinds, difficulty, size and frames per simulated second.
        seed_key: any integer; all randomness comes from it.
        frames: frames returned.
        interval: simulated frames (of 1/config.fps seconds) between two returned ones.

    Returns:
        uint8 array [frames, size, size, 3], RGB.

    Raises:
        ValueError: an option out of range (one line).
    """
    _check_counts("render_scene", frames, interval)
    _, scene = build_scene(config, seed_key)
    backdrop = draw_backdrop(scene, config.size)
    video = np.empty((frames, config.size, config.size, 3), np.uint8)
    for frame in _moments(scene, config.fps, frames, interval):
        video[frame] = draw_picture(scene, backdrop)
    return video


def simulate_scene(config: PhysicsConfig, seed_key: int, frames: int, interval: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and masks of one simulation; arguments and errors as in `render_scene`.

    Returns:
        the pictures, as `render_scene` gives them, and where each body shows in them: bool
        [frames, bodies, size, size], bodies in drawing order (what is in front hides what is behind, see
        `drawing.draw_masks`); the first is the one that `facts.describe_scene` speaks of.
    """
    _check_counts("simulate_scene", frames, interval)
    _, scene = build_scene(config, seed_key)
    backdrop = draw_backdrop(scene, config.size)
    video = np.empty((frames, config.size, config.size, 3), np.uint8)
    masks = np.empty((frames, len(scene.bodies), config.size, config.size), np.bool_)
    for frame in _moments(scene, config.fps, frames, interval):
        video[frame] = draw_picture(scene, backdrop)
        masks[frame] = draw_masks(scene, config.size)
    return video, masks


def _draw_kind(config: PhysicsConfig, rng: random.Random) -> str:
    """The first draw of a scene."""
    return config.scenes[int(rng.random() * len(config.scenes))]


def _check_counts(caller: str, frames: int, interval: int) -> None:
    if frames < 1 or interval < 1:
        raise ValueError(f"{caller}: frames={frames}, interval={interval}: both must be at least 1")


def _moments(scene: Scene, fps: float, frames: int, interval: int) -> Iterator[int]:
    """Numbers of the frames 0..frames-1, the scene being in the state of that frame while each is used."""
    substeps = math.ceil(1 / fps / LARGEST_STEP)
    step = 1 / fps / substeps
    for frame in range(frames):
        if frame:
            for _ in range(interval * substeps):
                scene.space.step(step)
        yield frame
