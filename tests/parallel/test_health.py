"""What goes wrong in a run and does not end it: failed saves, broken gradients, a slow rank; and what ends it after
all, in one line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .launch import REPOSITORY, torchrun
from .test_resume import losses, newest, train

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
SABOTAGE = str(REPOSITORY / "tests" / "parallel" / "sabotage.py")


def sabotaged(
    processes: int, what: str, run: Path, *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return torchrun(processes, SABOTAGE, what, "train", CONFIG, f"train.output={run}", *options, check=check)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sound(finished: Path) -> dict[int, float]:
    """Losses of an undisturbed run."""
    return losses(finished)


def test_a_failed_save_is_repeated(tmp_path: Path, sound: dict[int, float]) -> None:
    run = tmp_path / "run"
    result = sabotaged(1, "save_fails_once", run, "checkpoint.keep=0")
    assert result.stderr.count("could not be saved") == 1 and "training goes on" in result.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in (4, 8, 12, 14)
    ]
    assert losses(run) == sound


@pytest.mark.parametrize("background", ["false", "true"])
def test_training_goes_on_without_a_checkpoint_that_cannot_be_saved(
    tmp_path: Path, sound: dict[int, float], background: str
) -> None:
    run = tmp_path / "run"
    result = sabotaged(1, "save_fails_twice", run, "checkpoint.keep=0", f"checkpoint.async_save={background}")
    assert result.stderr.count("checkpoint of step 4 could not be saved") == 2 and "No space left" in result.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step_{step:08d}" for step in (8, 12, 14)]
    assert losses(run) == sound


def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    result = sabotaged(1, "save_fails", tmp_path / "run", "checkpoint.every=0", check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert result.returncode != 0 and len(lines) == 1 and "step 14 could not be saved" in lines[0], result.stderr


def test_all_ranks_skip_a_step_with_a_broken_gradient_and_name_its_samples(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = sabotaged(2, "nan_in_steps_3_and_4", run, "train.steps=6")
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in skipped] == [3, 4] and all(
        line["grad_norm"] is None and len(line["samples"]) == 4 for line in skipped
    )
    assert "step 3 skipped on all ranks" in result.stderr and skipped[0]["samples"][0]["name"] in result.stderr
    lines = metrics(run)
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert "loss" not in lines[2] and all(line["loss"] > 0 for line in lines if line["step"] not in (3, 4))
    state = json.loads((run / "checkpoints" / newest(run) / "state.json").read_text())
    assert (state["step"], state["updates"], state["consumed"]) == (6, 4, 24)
    # Skipping leaves weights and optimizer as they were: what one process makes of the same steps is the same.
    alone = tmp_path / "alone"
    sabotaged(1, "nan_in_steps_3_and_4", alone, "train.steps=6")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    # Step 4 was skipped and saved: a run resumed from there goes on bit for bit.
    whole = losses(alone)
    shutil.rmtree(alone / "checkpoints" / "step_00000006")
    assert train(1, alone, "train.steps=6") == whole and [line["skipped_steps"] for line in metrics(alone)] == [
        0,
        0,
        1,
        2,
        2,
        2,
    ]


@pytest.mark.long
def test_too_many_skipped_steps_stop_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = sabotaged(2, "nan_from_step_3", run, "optimizer.max_skipped=3", check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert result.returncode != 0 and len(lines) == 1, result.stderr
    assert "step 5" in lines[0] and "3 steps in a row" in lines[0] and "skipped.jsonl" in lines[0]
    assert newest(run) == "step_00000004"


def test_a_spike_is_skipped_where_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sabotaged(
        1,
        "spike_in_step_30",
        run,
        "train.steps=31",
        "optimizer.spike_factor=20",
        "checkpoint.every=0",
        "data.frames=2",
        "data.clips=[1,2]",
    )
    (line,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    taken = sorted(entry["grad_norm"] for entry in metrics(run)[:29])
    assert line["step"] == 30 and line["grad_norm"] > 20 * taken[14]
    assert metrics(run)[-1]["skipped_steps"] == 1


def test_the_slowest_rank_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sabotaged(4, "rank_2_is_slow", run, "logging.slowest_every=4", "checkpoint.every=0", "train.steps=9")
    named = [line for line in metrics(run) if "slowest_rank" in line]
    # The first answer covers the start-up as well; the one of steps 5 to 8 comes after it.
    assert named and named[-1]["slowest_rank"] == 2
    assert named[-1]["slowest_rank_time"] > named[-1]["median_rank_time"] + 0.025
