"""WSD-S in a run: checkpoints around each decay, losses after it, resumes inside of one, and runs of other lengths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint.folders import complete_folders, step_of

from .launch import REPOSITORY, cli

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
OPTIONS = (
    "optimizer.schedule=wsd_s",
    "optimizer.lr_wsd_decay_ends=[5, 10]",
    "optimizer.lr_wsd_decay_share=0.3",
    *("train.steps=10", "checkpoint.every=0", "checkpoint.keep=1", "eval.every=100", "eval.samples=2"),
)
TIMES = (
    *("step_time", "data_wait", "encode_time", "encode_wait"),
    *("tokens_per_second", "tflops_per_device", "memory_peak_gib"),
)


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    result = cli("train", CONFIG, f"train.output={run}", *OPTIONS)
    assert result.returncode == 0, result.stderr
    return run


@pytest.mark.usefixtures("processes")
def test_a_run_decays_twice_and_resumes_inside_of_a_decay(whole: Path, tmp_path: Path) -> None:
    from tests.conversion import same, to_folder

    again = tmp_path / "again"
    assert [step_of(path) for path in complete_folders(whole)] == [3, 5, 7, 10]
    rates = {line["step"]: line["learning_rate"] for line in lines_of(whole) if "learning_rate" in line}
    expected = [3e-3, 1.5e-3, 0, 3e-3, 3e-3, 2e-3, 1e-3, 0]
    assert [rates[step] for step in range(3, 11)] == pytest.approx(expected, rel=1e-12)
    validated = [line["step"] for line in lines_of(whole) if "validation_loss" in line]
    assert validated == [0, 5, 10]

    shutil.copytree(whole, again)
    for step in (5, 7, 10):
        shutil.rmtree(again / "checkpoints" / f"step_{step:08d}")
    resumed = cli("train", CONFIG, f"train.output={again}", *OPTIONS)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 3 of 10, 7 to go; learning rate 3.00e-03 -> 1.50e-03 (wsd_s)" in resumed.stdout
    assert lines_of(again) == lines_of(whole)
    same(to_folder(again, tmp_path / "resumed"), to_folder(whole, tmp_path / "at once"))


@pytest.mark.usefixtures("processes")
def test_a_decay_is_the_end_of_a_run_of_its_own_length(whole: Path, tmp_path: Path) -> None:
    """Up to the end of the first decay, and up to the beginning of a later one where there was none before, WSD-S is
    `wsd` of that length: digit for digit, weights and losses.
    """
    from tests.conversion import same, to_folder

    first, second = tmp_path / "first", tmp_path / "second"
    for run, steps in ((first, 5), (second, 10)):
        options = (f"train.steps={steps}", "optimizer.schedule=wsd", "optimizer.lr_wsd_decay_ends=[]")
        result = cli("train", CONFIG, f"train.output={run}", *OPTIONS, *options)
        assert result.returncode == 0, result.stderr
    told = {step: [line for line in lines_of(whole) if line["step"] <= step] for step in (3, 5)}
    assert lines_of(first) == told[5]
    assert [line for line in lines_of(second) if line["step"] <= 3] == told[3]
    same(to_folder(whole, tmp_path / "at 5", step=5), to_folder(first, tmp_path / "of 5"))
    # There the trunk goes on from weights that have decayed.
    losses = [
        next(line["loss"] for line in lines_of(run) if line["step"] == 7 and "loss" in line) for run in (whole, second)
    ]
    assert losses[0] != losses[1]
