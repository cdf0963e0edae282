"""What scenes say of themselves, against the state of a world that the test steps and against the pictures."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import subprocess
import sys
from collections import Counter

import pymunk
import pytest
from PIL import ImageColor, ImageDraw

from megatron_videogpt.config.schema_data import PhysicsConfig
from megatron_videogpt.data.sources.colours import NAMES, colour_name
from megatron_videogpt.data.sources.facts import FAST, SceneFacts, describe_scene, scene_classes
from megatron_videogpt.data.sources.physics import scene_kind, simulate_scene
from megatron_videogpt.data.sources.scenes import KINDS, Scene, new_scene

ALL = tuple(KINDS)
CAPTION = re.compile(
    r"((?P<number>two|three|four|five|six) (?P<plural>bodies|balls|bobs|dominoes): )?"
    r"an? ((?P<colour>[a-z]+) )?(?P<body>ball|box|bob|domino) starts (on the|in the) (?P<place>left|middle|right), "
    r"(?P<verb>falls|bounces|runs|rolls|swings|topples) to the (?P<direction>left|right)( and collides)?, "
    r"(?P<speed>slow|fast)"
)
VERBS = dict(falls="fall", bounces="bounce", runs="collide", rolls="roll", swings="pendulum", topples="dominoes")
COUNT = {None: 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def world(kind: str, difficulty: int, key: int) -> Scene:
    """The test's own world of a scene; the generator's first draw chooses among kinds."""
    rng = random.Random(key)
    rng.random()
    scene = new_scene(rng, difficulty)
    KINDS[kind](scene)
    return scene


def measured(scene: Scene) -> tuple[float, float, float]:
    """(x where the first body starts, x it moves and path it covers, per second) in a first step of 0.1 ms."""
    body = scene.bodies[0].rigid
    start = body.position
    scene.space.step(1e-4)
    moved = (body.position - start) / 1e-4
    return start.x, moved.x, moved.length


def read(caption: str) -> SceneFacts:
    """The facts that a caption states."""
    match = CAPTION.fullmatch(caption)
    assert match, caption
    said = match.groupdict()
    return SceneFacts(
        VERBS[said["verb"]],
        said["direction"],
        said["speed"],
        said["place"],
        said["body"],
        COUNT[said["number"]],
        said["colour"],
    )


@pytest.mark.parametrize("difficulty", [0, 1, 2])
@pytest.mark.parametrize("kind", ALL)
def test_class_and_caption_state_what_the_first_step_shows(kind: str, difficulty: int) -> None:
    config = PhysicsConfig(scenes=(kind,), difficulty=difficulty)
    doubtful = 0
    for key in range(60):
        facts, scene = describe_scene(config, key), world(kind, difficulty, key)
        x, along, speed = measured(scene)
        shape = scene.bodies[0].shape
        assert facts == read(facts.caption) and facts.name == f"{facts.kind}/{facts.direction}/{facts.speed}"
        assert facts.kind == kind and facts.bodies == len(scene.bodies)
        assert facts.place == ("left" if x < 64 / 3 else "middle" if x < 128 / 3 else "right")
        assert (facts.body in ("ball", "bob")) == isinstance(shape, pymunk.Circle)
        assert (facts.colour is None) == (difficulty == 0)
        # Bodies that overlap when the clock starts are pushed apart in the same step, so that a few are near a border.
        near = abs(along) < 0.01 or abs(speed - FAST[kind]) < 0.01
        doubtful += near
        if not near:
            assert facts.direction == ("right" if along > 0 else "left")
            assert facts.speed == ("fast" if speed > FAST[kind] else "slow")
    assert doubtful <= 1


@pytest.mark.parametrize("kind", ALL)
def test_halves_are_even_and_all_classes_occur(kind: str) -> None:
    seen = Counter(describe_scene(PhysicsConfig(scenes=(kind,)), key).name for key in range(600))
    assert set(seen) == set(scene_classes((kind,)))
    fast = sum(count for name, count in seen.items() if name.endswith("/fast"))
    assert 0.4 < fast / 600 < 0.6


def test_classes_are_in_a_fixed_order_and_coarser_ones_lead() -> None:
    assert scene_classes(PhysicsConfig(), 1) == ALL
    assert scene_classes(("roll", "fall", "roll"), 2) == ("roll/left", "roll/right", "fall/left", "fall/right")
    assert scene_classes(("collide", "bounce")) == (
        "collide/right/slow",
        "collide/right/fast",
        "bounce/left/slow",
        "bounce/left/fast",
        "bounce/right/slow",
        "bounce/right/fast",
    )
    facts = describe_scene(PhysicsConfig(), 3)
    assert [facts.class_name(depth) for depth in (1, 2, 3)] == [
        facts.kind,
        f"{facts.kind}/{facts.direction}",
        facts.name,
    ]
    for depth in (1, 2, 3):
        names = {describe_scene(PhysicsConfig(), key).class_name(depth) for key in range(900)}
        assert names == set(scene_classes(ALL, depth))


def test_kind_is_the_kind_drawn_and_nothing_is_simulated_or_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("simulated or drawn")

    monkeypatch.setattr(pymunk.Space, "step", refuse)
    monkeypatch.setattr(ImageDraw, "Draw", refuse)
    config = PhysicsConfig(scenes=("roll", "dominoes", "fall"), difficulty=2)
    kinds = [scene_kind(config, key) for key in range(50)]
    assert [describe_scene(config, key).kind for key in range(50)] == kinds and set(kinds) == set(config.scenes)


def test_other_facts_make_another_caption() -> None:
    facts = [
        SceneFacts(kind, direction, speed, place, body, bodies, colour)
        for kind, direction, speed, place, bodies, colour in itertools.product(
            ALL, ("left", "right"), ("slow", "fast"), ("left", "middle", "right"), (1, 2, 6), (None, *NAMES)
        )
        for body in {"pendulum": ("bob",), "dominoes": ("domino",), "fall": ("ball", "box")}.get(kind, ("ball",))
    ]
    captions = [one.caption for one in facts]
    assert len(set(captions)) == len(facts) and [read(caption) for caption in captions] == facts
    assert all(caption == caption.lower() and not caption.endswith(".") for caption in captions)
    one = SceneFacts("bounce", "right", "fast", "left", "ball", 1, "red")
    assert one.caption == "a red ball starts on the left, bounces to the right, fast"
    several = SceneFacts("collide", "right", "slow", "left", "ball", 3, "orange")
    assert several.caption == "three balls: an orange ball starts on the left, runs to the right and collides, slow"


@pytest.mark.parametrize("kind", ALL)
def test_colour_is_that_of_the_picture(kind: str) -> None:
    for difficulty, key in itertools.product((1, 2), range(4)):
        config = PhysicsConfig(scenes=(kind,), difficulty=difficulty, size=128)
        pictures, masks = simulate_scene(config, key, 1, 1)
        shown = Counter(map(tuple, pictures[0][masks[0, 0]].tolist()))
        ((most, _),) = shown.most_common(1)
        assert read(describe_scene(config, key).caption).colour == colour_name(most)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("black", ""),
        ("grey", "dimgray silver lightgray"),
        ("white", "snow ivory"),
        ("red", "crimson firebrick darkred"),
        ("orange", "darkorange coral"),
        ("yellow", "gold khaki"),
        ("green", "lime limegreen darkgreen seagreen"),
        ("turquoise", "teal cyan darkcyan"),
        ("blue", "navy royalblue dodgerblue skyblue"),
        ("purple", "darkviolet violet magenta"),
        ("pink", "hotpink deeppink plum"),
        ("brown", "saddlebrown sienna tan"),
    ],
)
def test_colours_are_called_what_the_web_calls_them(name: str, others: str) -> None:
    web = [] if name == "brown" else [name]  # the web's own "brown" is a dark red
    assert {colour_name(ImageColor.getrgb(other)[:3]) for other in [*web, *others.split()]} == {name}


def test_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from megatron_videogpt.config.schema_data import PhysicsConfig as C\n"
        "from megatron_videogpt.data.sources.facts import describe_scene as d\n"
        "from megatron_videogpt.data.sources.physics import simulate_scene as s\n"
        "scenes = [(C(difficulty=k % 3), k) for k in range(12)]\n"
        "parts = [d(*a).caption.encode() + d(*a).name.encode() + s(*a, 3, 9)[1].tobytes() for a in scenes]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    scenes = [(PhysicsConfig(difficulty=key % 3), key) for key in range(12)]
    facts = [describe_scene(*scene) for scene in scenes]
    parts = [
        one.caption.encode() + one.name.encode() + simulate_scene(*scene, 3, 9)[1].tobytes()
        for one, scene in zip(facts, scenes)
    ]
    assert there == hashlib.sha256(b"".join(parts)).hexdigest()


def test_bad_options_are_one_line() -> None:
    for refused, option in [
        (lambda: describe_scene(PhysicsConfig(difficulty=3), 0), "data.physics.difficulty"),
        (lambda: simulate_scene(PhysicsConfig(size=60), 0, 2, 1), "data.physics.size"),
        (lambda: simulate_scene(PhysicsConfig(), 0, 0, 1), "frames=0"),
        (lambda: scene_classes(("fall", "fly")), "fly"),
        (lambda: scene_classes(ALL, 4), "depth=4"),
        (lambda: describe_scene(PhysicsConfig(), 0).class_name(0), "depth=0"),
    ]:
        with pytest.raises(ValueError, match=option) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_an_exact_zero_counts_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def still(scene: Scene) -> None:
        KINDS["roll"](scene)
        scene.bodies[0].rigid.velocity = (-0.0, 0.0)

    monkeypatch.setitem(KINDS, "fall", still)
    facts = describe_scene(PhysicsConfig(scenes=("fall",)), 0)
    assert (facts.direction, facts.speed) == ("right", "slow")
