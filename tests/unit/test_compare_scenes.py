"""tools/compare_scenes.py: planted errors give the ratios and intervals that theory does, other scenes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.launch import interpreter, run
from tools import compare_scenes

RNG = np.random.default_rng(3)
SETTINGS = {"scenes": 10, "size": 64, "kinds": ["fall"], "interval": 4, "history": 8, "rollout_scenes": 3}


def write(folder: Path, errors: np.ndarray, repeat: np.ndarray, **settings: object) -> Path:
    folder.mkdir(parents=True)
    rows = {"model": {"errors": errors.tolist()}, "repeat": {"errors": repeat.tolist()}}
    text = json.dumps({"settings": SETTINGS | settings, "table": rows, "rollout": rows})
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    return folder


def arms(*models: np.ndarray, repeat: np.ndarray) -> list[compare_scenes.Arm]:
    return [compare_scenes.Arm(str(number), model, repeat) for number, model in enumerate(models)]


def test_the_interval_of_one_seed_is_that_of_a_mean_over_scenes() -> None:
    """Repeating errs by 2 everywhere, so that a ratio is half a mean, whose error is sd / sqrt(n)."""
    model, repeat = 1 + 0.3 * RNG.standard_normal((1, 400, 1)), np.full((400, 1), 2.0)
    found = compare_scenes.compare(arms(model, repeat=repeat))["0"]
    low, high = found["ratio_interval"]
    assert found["ratio"] == pytest.approx(model.mean() / 2) == pytest.approx((low + high) / 2, rel=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * model.std() / 20 / 2, rel=0.1)


def test_seeds_widen_the_interval() -> None:
    """Means of four seeds, alike in all scenes: draws of four of them with replacement."""
    offsets = np.array([0.8, 0.9, 1.1, 1.2])
    model = np.broadcast_to(offsets[:, None, None], (4, 50, 2))
    found = compare_scenes.compare(arms(model, repeat=np.ones((50, 2))))["0"]
    low, high = found["ratio_interval"]
    assert found["seeds"] == pytest.approx(offsets)
    assert (high - low) / 2 == pytest.approx(1.96 * offsets.std() / 2, rel=0.15)


def test_arms_are_compared_on_the_same_scenes() -> None:
    """Scenes differ a hundredfold, and an arm has four fifths of the other's error in each: the ratio is exact."""
    hard = 10 ** RNG.uniform(0, 2, (1, 30, 4))
    found = compare_scenes.compare(arms(hard, 0.8 * hard, repeat=hard[0]))["1"]
    assert found["against"] == pytest.approx(0.8) and found["against_interval"] == pytest.approx([0.8, 0.8])
    np.testing.assert_allclose(found["mse_by_frame"], 0.8 * hard[0].mean(0))


def test_the_command_prints_a_table_and_writes_a_picture(tmp_path: Path) -> None:
    repeat = np.ones((6, 5))
    folders = [write(tmp_path / name, value * repeat, repeat) for name, value in (("a", 0.5), ("b", 0.25))]
    named = ("--arm", "plain", folders[0], "--arm", "noise", folders[1])
    result = run(interpreter("tools/compare_scenes.py", *named, "--output", tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "0.500" in result.stdout and "0.250" in result.stdout
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["found"]
    assert found["noise"]["against"] == 0.5 and len(found["plain"]["mse_by_frame"]) == 5
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("settings", "part"), [({"history": 4}, "history is 4"), ({"kinds": ["roll"]}, "kinds is"), (None, "no errors")]
)
def test_other_scenes_are_refused_in_a_line(tmp_path: Path, settings: dict[str, object] | None, part: str) -> None:
    ones = np.ones((6, 5))
    first = write(tmp_path / "a", ones, ones)
    second = write(tmp_path / "b", ones, ones, **(settings or {}))
    if settings is None:
        (second / "metrics.json").write_text('{"settings": {"rollout_scenes": 3}, "table": {}}', encoding="utf-8")
    result = run(interpreter("tools/compare_scenes.py", "--arm", "a", first, second))
    assert result.returncode == 2 and part in result.stderr and result.stderr.count("\n") == 1
