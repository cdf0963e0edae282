"""What a physics scene shows, from its key alone: its class, a caption, and the facts behind both.

Everything is said of the scene's *first body* (the first mask of `physics.simulate_scene`; it is drawn behind the
others) at the moment when the clock starts, and is exact: it is read from the world before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pymunk

from ...config.schema_data import PhysicsConfig
from ...errors import UserError
from .colours import colour_name
from .physics import build_scene
from .scenes import KINDS, SIDE

FAST: dict[str, float] = {
    "fall": 12.0,
    "bounce": 28.0,
    "collide": 19.0,
    "roll": 17.0,
    "pendulum": 18.0,
    "dominoes": 21.0,
}
"""From which speed of its centre, in world units (1/64 of the picture's side) per second, the first body is "fast".
Between 40 and 60 % of the scenes of each kind are, at difficulty 0.
"""
DIRECTIONS: dict[str, tuple[str, ...]] = {kind: ("left", "right") for kind in KINDS} | {"collide": ("right",)}
"""Where first bodies go.  Balls that collide stand in a row that is numbered from the left, and run to its middle."""
SPEEDS = ("slow", "fast")
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}

MOTIONS = {
    "fall": "falls to the {}",
    "bounce": "bounces to the {}",
    "collide": "runs to the {} and collides",
    "roll": "rolls to the {}",
    "pendulum": "swings to the {}",
    "dominoes": "topples to the {}",
}
PLURALS = {"collide": "balls", "roll": "balls", "pendulum": "bobs", "dominoes": "dominoes"}
"""The bodies of a scene together, of kinds that do not mix balls and boxes."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class SceneFacts:
    """What a scene shows when its clock starts.

    kind: of the scene; direction: "left" or "right", the sign of the first body's horizontal velocity (0: right);
    speed: "slow" or "fast" (see `FAST`); place: "left", "middle" or "right", the third of the picture where its centre
    is; body: "ball", "box", "bob" or "domino"; bodies: how many can move; colour: of its surface without the stripe,
    one of `colours.NAMES`, None at difficulty 0, where it is the same in all scenes.
    """

    kind: str
    direction: str
    speed: str
    place: str
    body: str
    bodies: int
    colour: str | None

    @property
    def name(self) -> str:
        """The full class: "bounce/left/fast"."""
        return self.class_name(3)

    def class_name(self, depth: int) -> str:
        """The class's first `depth` parts, 1 to 3: "bounce", "bounce/left", "bounce/left/fast"."""
        return "/".join((self.kind, self.direction, self.speed)[: _checked(depth)])

    @property
    def caption(self) -> str:
        """All facts in words: "three bodies: a red ball starts on the left, bounces to the right, fast"."""
        several = f"{NUMBERS[self.bodies]} {PLURALS.get(self.kind, 'bodies')}: " if self.bodies > 1 else ""
        noun = f"{self.colour} {self.body}" if self.colour else self.body
        article = "an" if noun[0] in "aeiou" else "a"
        motion = MOTIONS[self.kind].format(self.direction)
        return f"{several}{article} {noun} starts {PLACES[self.place]}, {motion}, {self.speed}"


def describe_scene(config: PhysicsConfig, seed_key: int) -> SceneFacts:
    """What `render_scene` shows for this key, without simulating or drawing it (about 0.1 ms).

    Raises:
        ValueError: an option out of range (one line).
    """
    kind, scene = build_scene(config, seed_key)
    first = scene.bodies[0]
    position, velocity = first.rigid.position, first.rigid.velocity
    shape = "ball" if isinstance(first.shape, pymunk.Circle) else "box"
    return SceneFacts(
        kind=kind,
        direction="right" if velocity.x >= 0 else "left",
        speed="fast" if velocity.length >= FAST[kind] else "slow",
        place=tuple(PLACES)[min(2, max(0, int(3 * position.x / SIDE)))],
        body={"pendulum": "bob", "dominoes": "domino"}.get(kind, shape),
        bodies=len(scene.bodies),
        colour=colour_name(first.colour) if config.difficulty > 0 else None,
    )


def scene_classes(kinds: PhysicsConfig | Sequence[str], depth: int = 3) -> tuple[str, ...]:
    """Every class that scenes of these kinds can have, each once: by kind in the given order, then left before right,
    slow before fast.  No scene of "collide" goes to the left, so that its classes to the left are not there.

    Args:
        kinds: names of kinds, or a configuration that lists them.
        depth: parts of a name, 1 to 3, as in `SceneFacts.class_name`.

    Raises:
        ValueError: an unknown kind, or another depth (one line).
    """
    names = kinds.scenes if isinstance(kinds, PhysicsConfig) else kinds
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UserError(f"unknown scene kind {unknown}; choose from {', '.join(KINDS)}")
    full = [(kind, direction, speed) for kind in names for direction in DIRECTIONS[kind] for speed in SPEEDS]
    return tuple(dict.fromkeys("/".join(parts[: _checked(depth)]) for parts in full))


def _checked(depth: int) -> int:
    if depth not in (1, 2, 3):
        raise ValueError(f"class of a scene: depth={depth}: must be 1, 2 or 3")
    return depth
