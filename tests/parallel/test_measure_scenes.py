"""tools/measure_scenes.py on a real run: a table, a rollout and its pictures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .launch import interpreter, run

ROWS = ["model", "repeat", "linear", "round_trip"]


def test_a_run_is_measured_beside_simple_guesses(finished: Path, tmp_path: Path) -> None:
    """The run's frames are too small for the meter; its model takes larger ones."""
    options = ("--size", 64, "--scenes", 1, "--frames", 3, "--rollout", 5, "--rollout-scenes", 1, "--seed", 3)
    result = run(interpreter("tools/measure_scenes.py", finished, *options, "--output", tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert list(measured["table"]) == list(measured["rollout"]) == ROWS
    settings = measured["settings"]
    assert settings["clips"] == [2, 1] and settings["history"] == 2 and settings["interval"] == 2
    assert settings["size"] == 64 and settings["seed"] == 3 and measured["weights"] == "trained"
    table, rollout = measured["table"], measured["rollout"]
    assert table["repeat"]["ratio"] == 1 and table["round_trip"]["worst"] >= 0.98 and len(table["model"]["found"]) == 6
    # One scene of every kind in both, and the same noise: the rollout begins as the short prediction does.
    for name in ROWS:
        for curve in ("mse_by_frame", "found_by_frame"):
            assert len(table[name][curve]) == 3 and len(rollout[name][curve]) == 5
            assert rollout[name][curve][:2] == pytest.approx(table[name][curve][:2], rel=1e-3)
    with Image.open(tmp_path / "out" / "scenes.webp") as picture:
        assert picture.n_frames == 2 + 5
    assert Image.open(tmp_path / "out" / "rollout.png").size == (1200, 456)
    assert "codec round trip of the truth" in result.stdout


def test_what_cannot_be_measured_is_told_in_a_line(finished: Path, tmp_path: Path) -> None:
    for options, problem in (
        ((finished,), "frames of 32x32 pixels cannot be measured; give --size N"),
        ((finished, "--scenes", 0), "--scenes 0: must be at least 1"),
        ((tmp_path / "nothing",), "no such folder"),
    ):
        result = run(interpreter("tools/measure_scenes.py", *options, "--output", tmp_path / "out"))
        assert result.returncode == 2 and problem in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
