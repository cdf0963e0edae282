"""The kinds of physics scenes: who stands where, and with which velocity, when the clock starts.

World units: the frame is a square of side 64, x to the right, y *down*; seconds; gravity 45 units/s^2 (slow enough that
a fall lasts about 30 rendered frames at 24 fps, so that motion is spread over a whole training clip). Start conditions
keep every scene moving for about three seconds: walls and ceiling are elastic, nothing leaves the frame.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pymunk

SIDE = 64.0
FLOOR = 54.0
GRAVITY = 45.0
Colour = tuple[int, int, int]

BACKGROUND: Colour = (236, 232, 220)
GROUND: Colour = (92, 104, 120)
RED: Colour = (206, 62, 54)
BLUE: Colour = (44, 98, 190)


@dataclass
class Body:
    """A moving shape and its looks; ``accent`` (if any) marks a stripe through the centre, so that rotation can be
    seen.
    """

    shape: pymunk.Circle | pymunk.Poly
    rigid: pymunk.Body
    colour: Colour
    accent: Colour | None = None


@dataclass
class Scene:
    """A world ready to be stepped and drawn."""

    space: pymunk.Space
    rng: random.Random
    difficulty: int
    background: Colour
    ground: Colour
    bodies: list[Body] = field(default_factory=list)
    ground_shapes: list[list[tuple[float, float]]] = field(default_factory=list)
    strings: list[tuple[tuple[float, float], pymunk.Body]] = field(default_factory=list)

    def uniform(self, low: float, high: float) -> float:
        """A draw from [low, high)."""
        return low + (high - low) * self.rng.random()

    def integer(self, low: int, high: int) -> int:
        """A draw from low..high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.rng.random() < 0.5 else -1.0

    def colour(self, index: int) -> Colour:
        """The fixed palette at difficulty 0, a free colour that stands out from the background above."""
        if self.difficulty == 0:
            return (RED, BLUE)[index % 2]
        while True:
            colour = tuple(self.integer(0, 255) for _ in range(3))
            if sum(abs(a - b) for a, b in zip(colour, self.background)) > 180:
                return colour  # type: ignore[return-value]

    def accent(self, colour: Colour) -> Colour | None:
        """A darker or lighter shade of the colour above difficulty 0."""
        if self.difficulty == 0:
            return None
        return tuple(c // 2 if sum(colour) > 380 else 128 + c // 2 for c in colour)  # type: ignore[return-value]


def new_scene(rng: random.Random, difficulty: int) -> Scene:
    """An empty room: floor, two walls, ceiling; colours and gravity by difficulty (0, 1, 2 as in
    `PhysicsConfig.difficulty`).
    """
    space = pymunk.Space()
    space.iterations = 12
    scene = Scene(space, rng, difficulty, BACKGROUND, GROUND)
    space.gravity = (0.0, GRAVITY)
    if difficulty > 0:
        limits = (150, 250) if rng.random() < 0.6 else (10, 110)
        scene.background = tuple(scene.integer(*limits) for _ in range(3))  # type: ignore[assignment]
        scene.ground = tuple((c + 128) % 256 for c in scene.background)  # type: ignore[assignment]
    if difficulty > 1:
        angle, strength = scene.uniform(-1.0, 1.0), GRAVITY * scene.uniform(0.4, 1.5)
        space.gravity = (strength * math.sin(angle), strength * math.cos(angle))
    scene.ground_shapes.append([(0, FLOOR), (SIDE, FLOOR), (SIDE, SIDE), (0, SIDE)])
    return scene


def add_walls(scene: Scene, floor_elasticity: float, wall_elasticity: float = 1.0, friction: float = 0.0) -> None:
    """Floor, side walls and ceiling as thick segments, so that fast bodies cannot tunnel."""
    thick = 20.0
    sides = [((-thick, FLOOR + thick), (SIDE + thick, FLOOR + thick), floor_elasticity)]
    sides += [((x, -SIDE), (x, 2 * SIDE), wall_elasticity) for x in (-thick, SIDE + thick)]
    sides += [((-thick, -thick), (SIDE + thick, -thick), wall_elasticity)]
    for start, end, elasticity in sides:
        segment = pymunk.Segment(scene.space.static_body, start, end, thick)
        segment.elasticity, segment.friction = elasticity, friction
        scene.space.add(segment)


def add_ball(
    scene: Scene,
    x: float,
    y: float,
    radius: float,
    velocity: tuple[float, float],
    elasticity: float = 1.0,
    friction: float = 0.0,
) -> Body:
    """A disc of mass proportional to its area."""
    mass = radius * radius / 64.0
    body = pymunk.Body(mass, pymunk.moment_for_circle(mass, 0, radius))
    body.position, body.velocity = (x, y), velocity
    shape = pymunk.Circle(body, radius)
    return _finish(scene, body, shape, elasticity, friction)


def add_box(
    scene: Scene,
    x: float,
    y: float,
    width: float,
    height: float,
    velocity: tuple[float, float],
    elasticity: float,
    friction: float,
    angle: float = 0.0,
) -> Body:
    """A rectangle of mass proportional to its area, centred at (x, y)."""
    mass = width * height / 200.0
    body = pymunk.Body(mass, pymunk.moment_for_box(mass, (width, height)))
    body.position, body.velocity, body.angle = (x, y), velocity, angle
    shape = pymunk.Poly.create_box(body, (width, height))
    return _finish(scene, body, shape, elasticity, friction)


def _finish(
    scene: Scene, body: pymunk.Body, shape: pymunk.Circle | pymunk.Poly, elasticity: float, friction: float
) -> Body:
    shape.elasticity, shape.friction = elasticity, friction
    scene.space.add(body, shape)
    colour = scene.colour(len(scene.bodies))
    drawn = Body(shape, body, colour, scene.accent(colour))
    scene.bodies.append(drawn)
    return drawn


def _columns(scene: Scene, count: int) -> list[float]:
    """Evenly spaced x places, jittered, so that bodies start apart."""
    width = SIDE / count
    return [width * (i + 0.5) + scene.uniform(-0.1, 0.1) * width for i in range(count)]


def _scatter(
    scene: Scene, count: int, y: tuple[float, float], speed: Callable[[], tuple[float, float]], elasticity: float
) -> None:
    """Bodies side by side: discs at difficulty 0, discs and boxes above."""
    friction = 0.0 if scene.difficulty == 0 else 0.4
    largest = 8.5 if count == 1 else min(8.0, 0.36 * SIDE / count)
    for x in _columns(scene, count):
        radius = scene.uniform(0.8, 1.0) * largest
        if count == 1:
            x = scene.uniform(14, 50)
        height = scene.uniform(*y)
        if scene.difficulty == 0 or scene.rng.random() < 0.6:
            add_ball(scene, x, height, radius, speed(), elasticity, friction)
        else:
            side = 1.5 * radius
            add_box(
                scene,
                x,
                height,
                side,
                side * scene.uniform(0.8, 1.2),
                speed(),
                elasticity,
                friction,
                scene.uniform(0, math.pi),
            )


def fall(scene: Scene) -> None:
    """Bodies dropped from high up (some tossed upwards), drifting sideways; they rebound."""
    add_walls(scene, 0.9, friction=0.0 if scene.difficulty == 0 else 0.5)
    count = 1 if scene.difficulty == 0 else scene.integer(2, 4)
    _scatter(scene, count, (11, 20), lambda: (scene.sign() * scene.uniform(6, 14), scene.uniform(-12, 12)), 0.9)


def bounce(scene: Scene) -> None:
    """Fast, highly elastic bodies between floor, walls and ceiling."""
    add_walls(scene, 1.0, friction=0.0 if scene.difficulty == 0 else 0.3)
    count = 1 if scene.difficulty == 0 else scene.integer(2, 4)
    _scatter(scene, count, (14, 40), lambda: (scene.sign() * scene.uniform(16, 32), scene.uniform(-25, 25)), 0.97)


def collide(scene: Scene) -> None:
    """Balls meet on a frictionless floor: they exchange momentum, turn at the walls and meet again."""
    add_walls(scene, 0.0)
    count = 2 if scene.difficulty == 0 else scene.integer(2, 4)
    for i, x in enumerate(_columns(scene, count)):
        radius = scene.uniform(7.0, 8.5) if scene.difficulty == 0 else min(scene.uniform(4, 8), 0.38 * SIDE / count)
        direction = 1.0 if i < count / 2 else -1.0
        add_ball(scene, x, FLOOR - radius, radius, (direction * scene.uniform(10, 28), 0.0))


def roll(scene: Scene) -> None:
    """A ball rolls down a ramp across the whole frame, turns at the wall and climbs again."""
    high, sign = scene.uniform(30, 38), scene.sign()
    left, right = (high, FLOOR) if sign > 0 else (FLOOR, high)
    ramp = [(0.0, left), (SIDE, right), (SIDE, SIDE), (0.0, SIDE)]
    scene.ground_shapes.append(ramp)
    add_walls(scene, 0.0, 1.0, 1.0)
    slope = pymunk.Poly(scene.space.static_body, ramp)
    slope.friction = 1.0
    scene.space.add(slope)
    angle = math.atan2(right - left, SIDE)
    for i in range(1 if scene.difficulty == 0 else scene.integer(1, 2)):
        radius = scene.uniform(7, 8.5) if scene.difficulty == 0 else scene.uniform(4, 7)
        along = scene.uniform(10, 22) + 22 * i
        x = along if sign > 0 else SIDE - along
        y = left + (right - left) * x / SIDE - radius / math.cos(angle)
        speed = sign * scene.uniform(10, 24)
        ball = add_ball(scene, x, y, radius, (speed * math.cos(angle), speed * math.sin(angle)), 0.8, 1.0)
        ball.rigid.angular_velocity = speed / radius


def pendulum(scene: Scene) -> None:
    """A bob on a string swings without loss, from a random phase (above difficulty 0 sometimes two side by side)."""
    add_walls(scene, 0.5)
    count = 1 if scene.difficulty == 0 else scene.integer(1, 2)
    for i in range(count):
        length = scene.uniform(24, 29) if count == 1 else scene.uniform(16, 34)
        radius = scene.uniform(7, 8.5) if count == 1 else scene.uniform(4, 5)
        pivot = (SIDE / 2 if count == 1 else 20.0 + 24.0 * i, 6.0)
        amplitude, phase = (
            (scene.uniform(0.7, 0.9) if count == 1 else scene.uniform(0.3, 0.4)),
            scene.uniform(0, 2 * math.pi),
        )
        angle = amplitude * math.cos(phase)
        rate = -amplitude * math.sin(phase) * math.sqrt(GRAVITY / length)
        x, y = pivot[0] + length * math.sin(angle), pivot[1] + length * math.cos(angle)
        bob = add_ball(scene, x, y, radius, (rate * length * math.cos(angle), -rate * length * math.sin(angle)))
        scene.space.add(pymunk.PinJoint(scene.space.static_body, bob.rigid, pivot, (0, 0)))
        scene.strings.append((pivot, bob.rigid))


def dominoes(scene: Scene) -> None:
    """Tall dominoes: the first is pushed, each topples the next."""
    add_walls(scene, 0.0, 0.0, 0.9)
    scene.space.gravity = (0.0, GRAVITY)  # a tilted room would topple them all at once
    count = 3 if scene.difficulty == 0 else scene.integer(4, 6)
    height = scene.uniform(26, 30) if scene.difficulty == 0 else scene.uniform(16, 28)
    width, gap = (7.0, 14.0) if scene.difficulty == 0 else (scene.uniform(2.5, 5), scene.uniform(7.5, 9))
    sign = scene.sign()
    start = scene.uniform(6, 14) if scene.difficulty == 0 else 4.0
    for i in range(count):
        along = start + gap * i
        x = along if sign > 0 else SIDE - along
        domino = add_box(scene, x, FLOOR - height / 2, width, height, (0.0, 0.0), 0.0, 0.4)
        if i == 0:
            rate = sign * scene.uniform(0.9, 2.2)
            domino.rigid.angular_velocity = rate
            domino.rigid.velocity = (rate * height / 2, 0.0)


KINDS: dict[str, Callable[[Scene], None]] = {
    "fall": fall,
    "bounce": bounce,
    "collide": collide,
    "roll": roll,
    "pendulum": pendulum,
    "dominoes": dominoes,
}
