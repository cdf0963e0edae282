"""Drawing a scene as it stands: a picture, or which body each pixel shows.

Both come from the same drawing calls (`_paint`), once with colours and once with the numbers of the bodies, so that a
mask cannot differ from its picture.  They are drawn ``SUPERSAMPLING`` times larger, without antialiasing, and reduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pymunk
from PIL import Image, ImageDraw

from .scenes import SIDE, Body, Colour, Scene

SUPERSAMPLING = 2
Ink = Colour | int
"""What Pillow fills with: a colour in a picture, a number in a map of numbers."""


def draw_backdrop(scene: Scene, size: int) -> Image.Image:
    """Background and ground, still large: RGB of side ``SUPERSAMPLING * size``.  Once per scene: it uses the scene's
    randomness.
    """
    side = SUPERSAMPLING * size
    if scene.difficulty < 2:
        canvas = Image.new("RGB", (side, side), scene.background)
    else:
        canvas = Image.fromarray(_texture(scene, side))
    draw = ImageDraw.Draw(canvas)
    scale = side / SIDE
    for polygon in scene.ground_shapes:
        draw.polygon([(round(x * scale), round(y * scale)) for x, y in polygon], fill=scene.ground)
    return canvas


def draw_picture(scene: Scene, backdrop: Image.Image) -> np.ndarray:
    """The present state, box-filtered: uint8 [size, size, 3], RGB.  backdrop: as `draw_backdrop` gives it."""
    picture = backdrop.copy()
    _paint(scene, picture, scene.ground, [(body.colour, body.accent) for body in scene.bodies])
    return np.asarray(picture.reduce(SUPERSAMPLING))


def draw_masks(scene: Scene, size: int) -> np.ndarray:
    """Where each body shows in the present state: bool [bodies, size, size], at most one body per pixel.

    A pixel shows what most of its subpixels show; among equals, what is in front.  A stripe is part of its body;
    background, ground and strings are behind all bodies and part of none.
    """
    side = SUPERSAMPLING * size
    numbers = Image.new("L", (side, side), 0)
    _paint(scene, numbers, 0, [(i, None if body.accent is None else i) for i, body in enumerate(scene.bodies, 1)])
    subpixels = [
        np.asarray(numbers)[i::SUPERSAMPLING, j::SUPERSAMPLING]
        for i in range(SUPERSAMPLING)
        for j in range(SUPERSAMPLING)
    ]
    # From front to back, because the first of equal counts wins.
    order = np.arange(len(scene.bodies), -1, -1, dtype=np.uint8)[:, None, None]
    counts = sum((part == order).view(np.uint8) for part in subpixels)
    winner = np.argmax(counts, axis=0)
    return winner == np.arange(len(scene.bodies) - 1, -1, -1)[:, None, None]


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


def _paint(scene: Scene, canvas: Image.Image, string: Ink, inks: Sequence[tuple[Ink, Ink | None]]) -> None:
    """Strings, then the bodies, later ones in front.  inks: of each body and of its stripe."""
    scale = canvas.width / SIDE
    draw = ImageDraw.Draw(canvas)
    for (x, y), bob in scene.strings:
        end = bob.position
        draw.line(
            [(x * scale, y * scale), (end.x * scale, end.y * scale)],
            fill=string,
            width=max(1, round(1.2 * scale)),
        )
    for body, (ink, stripe) in zip(scene.bodies, inks):
        if isinstance(body.shape, pymunk.Circle):
            _paint_disc(draw, body, scale, ink, stripe)
        else:
            _paint_polygon(draw, body, scale, ink, stripe)


def _paint_disc(draw: ImageDraw.ImageDraw, body: Body, scale: float, ink: Ink, stripe: Ink | None) -> None:
    centre, radius = body.rigid.position, body.shape.radius * scale
    # Rounding the corner, not both corners, keeps the disc's size the same wherever it is.
    diameter = round(2 * radius)
    left, top = round(centre.x * scale - radius), round(centre.y * scale - radius)
    draw.ellipse([left, top, left + diameter - 1, top + diameter - 1], fill=ink)
    if stripe is not None:
        dx, dy = 0.75 * radius * math.cos(body.rigid.angle), 0.75 * radius * math.sin(body.rigid.angle)
        x, y = left + radius, top + radius
        draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=stripe, width=max(2, round(radius / 3)))


def _paint_polygon(draw: ImageDraw.ImageDraw, body: Body, scale: float, ink: Ink, stripe: Ink | None) -> None:
    centre, angle = body.rigid.position, body.rigid.angle
    cos, sin = math.cos(angle), math.sin(angle)

    def place(x: float, y: float) -> tuple[int, int]:
        return round((centre.x + x * cos - y * sin) * scale), round((centre.y + x * sin + y * cos) * scale)

    corners = [(vertex.x, vertex.y) for vertex in body.shape.get_vertices()]
    draw.polygon([place(x, y) for x, y in corners], fill=ink)
    if stripe is not None:
        draw.polygon([place(0.45 * x, 0.45 * y) for x, y in corners], fill=stripe)
