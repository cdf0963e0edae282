"""Deterministic rigid-body videos: pymunk for the motion, Pillow for the pictures (2x supersampling).

A scene is a pure function of (config, seed_key): same pixels in every process, for equal library versions.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pymunk
from PIL import Image, ImageDraw

from ...config.schema_data import PhysicsConfig
from ...errors import UserError
from .scenes import KINDS, SIDE, Body, Scene, new_scene

SUPERSAMPLING = 2
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
    return config.scenes[int(random.Random(seed_key).random() * len(config.scenes))]


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
    check_physics(config)
    if frames < 1 or interval < 1:
        raise ValueError(f"render_scene: frames={frames}, interval={interval}: both must be at least 1")
    rng = random.Random(seed_key)
    kind = config.scenes[int(rng.random() * len(config.scenes))]
    scene = new_scene(rng, config.difficulty)
    KINDS[kind](scene)
    scale = SUPERSAMPLING * config.size / SIDE
    canvas = _backdrop(scene, config.size * SUPERSAMPLING, scale)
    substeps = math.ceil(1 / config.fps / LARGEST_STEP)
    step = 1 / config.fps / substeps
    video = np.empty((frames, config.size, config.size, 3), np.uint8)
    for frame in range(frames):
        if frame:
            for _ in range(interval * substeps):
                scene.space.step(step)
        video[frame] = np.asarray(_draw(scene, canvas, scale))
    return video


def _backdrop(scene: Scene, side: int, scale: float) -> Image.Image:
    """Background and ground, drawn once."""
    if scene.difficulty < 2:
        canvas = Image.new("RGB", (side, side), scene.background)
    else:
        canvas = Image.fromarray(_texture(scene, side))
    draw = ImageDraw.Draw(canvas)
    for polygon in scene.ground_shapes:
        draw.polygon([(round(x * scale), round(y * scale)) for x, y in polygon], fill=scene.ground)
    return canvas


def _texture(scene: Scene, side: int) -> np.ndarray:
    """A smooth gradient plus stripes or checks: uint8 [side, side, 3]."""
    first = np.array(scene.background, np.float64)
    second = np.clip(first + np.array([scene.uniform(-60, 60) for _ in range(3)]), 0, 255)
    y, x = np.mgrid[0:side, 0:side] / side
    angle = scene.uniform(0, 2 * math.pi)
    along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    mix = along / math.sqrt(2) + 0.5
    cells = scene.integer(4, 8)
    style = scene.integer(0, 2)
    if style == 1:
        mix = 0.5 * mix + 0.5 * (np.floor(along * cells) % 2)
    elif style == 2:
        mix = 0.5 * mix + 0.5 * ((np.floor(x * cells) + np.floor(y * cells)) % 2)
    return np.rint(first + (second - first) * mix[..., None]).astype(np.uint8)


def _draw(scene: Scene, canvas: Image.Image, scale: float) -> Image.Image:
    """One picture of the present state, box-filtered to the final size."""
    picture = canvas.copy()
    draw = ImageDraw.Draw(picture)
    for (x, y), bob in scene.strings:
        end = bob.position
        draw.line(
            [(x * scale, y * scale), (end.x * scale, end.y * scale)],
            fill=scene.ground,
            width=max(1, round(1.2 * scale)),
        )
    for body in scene.bodies:
        if isinstance(body.shape, pymunk.Circle):
            _draw_disc(draw, body, scale)
        else:
            _draw_polygon(draw, body, scale)
    return picture.reduce(SUPERSAMPLING)


def _draw_disc(draw: ImageDraw.ImageDraw, body: Body, scale: float) -> None:
    centre, radius = body.rigid.position, body.shape.radius * scale
    # Rounding the corner, not both corners, keeps the disc's size the same wherever it is.
    diameter = round(2 * radius)
    left, top = round(centre.x * scale - radius), round(centre.y * scale - radius)
    draw.ellipse([left, top, left + diameter - 1, top + diameter - 1], fill=body.colour)
    if body.accent is not None:
        dx, dy = 0.75 * radius * math.cos(body.rigid.angle), 0.75 * radius * math.sin(body.rigid.angle)
        x, y = left + radius, top + radius
        draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=body.accent, width=max(2, round(radius / 3)))


def _draw_polygon(draw: ImageDraw.ImageDraw, body: Body, scale: float) -> None:
    centre, angle = body.rigid.position, body.rigid.angle
    cos, sin = math.cos(angle), math.sin(angle)

    def place(x: float, y: float) -> tuple[int, int]:
        return round((centre.x + x * cos - y * sin) * scale), round((centre.y + x * sin + y * cos) * scale)

    corners = [(vertex.x, vertex.y) for vertex in body.shape.get_vertices()]
    draw.polygon([place(x, y) for x, y in corners], fill=body.colour)
    if body.accent is not None:
        draw.polygon([place(0.45 * x, 0.45 * y) for x, y in corners], fill=body.accent)
