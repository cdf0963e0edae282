"""`sample --class` and `--text`: what reaches the sampler, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from megatron_videogpt.__main__ import main
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.condition.words import Words
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.demo.work import Request, continue_one
from megatron_videogpt.sample import cli
from tests.fakes import fake_model

CLASSES = ConditionConfig(kind="class", classes=("fall", "bounce", "bounce/left"))
TEXTS = ConditionConfig(kind="text", encoder="words", max_tokens=4)


class Told:
    """A model that predicts the sum of what each video is to show, and notes it."""

    def __init__(self, condition: ConditionConfig, encoder: Any = None) -> None:
        self.conditions: list[list[Tensor | None]] = []
        self.rows: list[int] = []
        made = fake_model(self.predict, steps=2, guidance=3.0, clips=(2, 1))
        self.model = replace(
            made, config=replace(made.config, condition=condition), conditioning=Conditioning(condition, encoder)
        )

    def predict(
        self, histories: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]
    ) -> list[Tensor]:
        self.conditions.append(conditions)
        self.rows.append(len(clips))
        return [
            torch.full_like(clip, 0.0 if told is None else float(told.float().sum()) / 10)
            for clip, told in zip(clips, conditions, strict=True)
        ]


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with such a model -> exit code."""

    def run(told: Told, *arguments: Any) -> int:
        monkeypatch.setattr(cli, "load", lambda *rest: told.model)
        return main(["sample", "--checkpoint", "run", *map(str, arguments)])

    return run


def test_a_video_of_each_class_from_nothing(sample: Any, tmp_path: Path) -> None:
    told, out = Told(CLASSES), tmp_path / "out"
    options = ("--formats", "mp4,png,gif,latents")
    assert sample(told, "--class", "bounce/left", "--class", "fall", "--output", out, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}{ending}"
        for name in ("bounce_left", "fall")
        for ending in (".gif", ".json", ".mp4", ".png", ".safetensors")
    )
    # Both branches of guidance from the first clip on, although nothing was given: the second is told nothing.
    assert set(told.rows) == {4} and len(told.rows) == 2 * 2
    assert all([None if c is None else c.tolist() for c in row] == [[2], [0], None, None] for row in told.conditions)
    facts = json.loads((out / "bounce_left.json").read_text())
    assert (facts["class"], facts["text"], facts["given_frames"], facts["generated_frames"]) == (
        "bounce/left",
        None,
        0,
        3,
    )
    latents = load_file(out / "bounce_left.safetensors")
    side = told.model.config.data.physics.size // 8
    assert latents["given"].shape[0] == 0 and latents["generated"].shape[2:] == (side, side)
    # v = v_without + 3 (v_with - v_without) of constant predictions ends at 3 times the class's.
    assert latents["generated"].mean() == pytest.approx(3 * 0.2, abs=1e-5)


def test_a_text_for_each_line_of_a_file(sample: Any, tmp_path: Path) -> None:
    encoder, out = Words(TEXTS), tmp_path / "out"
    told = Told(TEXTS, encoder)
    (tmp_path / "lines.txt").write_text("A red ball falls to the left\n\n  Äpfel rollen \n", encoding="utf-8")
    assert sample(told, "--text", tmp_path / "lines.txt", "--text", "a box", "--output", out) == 0
    names = {path.stem for path in out.iterdir()}
    assert names == {"A_red_ball_falls_to_the_left", "Äpfel_rollen", "a_box"}
    first = told.conditions[0][:3]
    expected = encoder.encode(["a red ball falls", "äpfel rollen", "a box"])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, expected, strict=True))


def test_one_class_for_all_inputs_and_a_scene_that_says_its_own(sample: Any, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (0, 0, 200)).save(tmp_path / "a.png")
    told = Told(CLASSES)
    inputs = (tmp_path / "a.png", "--scene", "bounce/3", "--output", tmp_path / "out", "--history", 1)
    assert sample(told, *inputs, "--class", "fall") == 0
    assert [c.tolist() for c in told.conditions[0][:2]] == [[0], [0]]  # type: ignore[union-attr]
    told = Told(CLASSES)
    assert sample(told, *inputs) == 0
    picture, scene = told.conditions[0][:2]
    said = json.loads((tmp_path / "out" / "bounce_3.json").read_text())["class"]
    assert said.startswith("bounce/") and picture is None
    assert scene is not None and scene.tolist() == [2 if said.startswith("bounce/left") else 1]


@pytest.mark.parametrize(
    ("model", "arguments", "line"),
    [
        ("class", ("--class", "bounc"), "class 'bounc' is not one of the 3 of condition.classes; the nearest: bounce"),
        ("class", ("--text", "a ball"), "--text: the model was trained with condition.kind = class; use --class"),
        ("text", ("--class", "fall"), "--class: the model was trained with condition.kind = text; use --text"),
        ("none", ("--class", "fall"), "--class: the model was trained with condition.kind = none; leave --class out"),
        ("text", ("--class", "fall", "--text", "a"), "--class and --text: a model takes one of the two"),
        ("text", ("--text", "  "), "has no word in it; say what the video is to show"),
        ("text", ("--text", "{}/none.txt"), "none.txt: cannot be read as a text file"),
        ("text", ("--text", "{}/blank.txt"), "blank.txt': has no word in it"),
        ("text", ("--text", "!!!"), "a caption without a word: '!!!'"),
        (
            "no encoder",
            ("--text", "a"),
            "the model takes texts, and its text encoder is not known here; give --text-encoder",
        ),
        (
            "class",
            ("--class", "fall", "--class", "bounce", "--scene", "fall/1"),
            "2 classes or texts: all inputs share one",
        ),
        ("class", (), "or, for a model that takes one, --class or --text"),
    ],
)
def test_what_a_model_does_not_take_is_one_line(
    model: str, arguments: tuple[str, ...], line: str, sample: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        "class": lambda: Told(CLASSES),
        "text": lambda: Told(TEXTS, Words(TEXTS)),
        "no encoder": lambda: Told(TEXTS),
        "none": lambda: Told(ConditionConfig()),
    }[model]()
    (tmp_path / "blank.txt").write_text("\n \n")
    code = sample(told, *(part.format(tmp_path) for part in arguments), "--output", tmp_path / "out")
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and line in error[-1] and not told.rows
    assert error[-1].startswith("error: ")


@pytest.mark.parametrize(("shown", "number"), [("fall", 0), ("bounce/left", 2), ("", None)])
def test_the_demo_asks_for_a_class(shown: str, number: int | None, tmp_path: Path) -> None:
    told = Told(CLASSES)
    request = Request(None, ("roll", 7), 1, 2, 1, 2, 1, 1.0, 0, shown)
    if number is None:
        # A scene says its own class, and this model does not know it.
        with pytest.raises(ValueError, match="^class 'roll/.*' is not one of the 3 of condition.classes"):
            continue_one(told.model, request, tmp_path, lambda share, text: None)
        return
    continue_one(told.model, request, tmp_path, lambda share, text: None)
    assert [c.tolist() for row in told.conditions for c in row if c is not None] == [[number]]
