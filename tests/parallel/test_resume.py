"""A killed run goes on as if nothing had happened: bit for bit in its layout, to rounding in another."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from .launch import REPOSITORY, interpreter, kill_tree, start, torchrun, torchrun_command

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
TP2 = ("parallel.tensor=2", "parallel.sequence=true")


def losses(run: Path) -> dict[int, float]:
    """Loss of every logged step; each step must be there once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def newest(run: Path) -> str:
    """Name of the newest complete checkpoint."""
    return max(
        path.name
        for path in (run / "checkpoints").iterdir()
        if (path / "state.json").is_file() and path.suffix != ".partial"
    )


def train(processes: int, run: Path, *options: str) -> dict[int, float]:
    torchrun(processes, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *options)
    return losses(run)


def kill_after(run: Path, step: int, *options: str) -> None:
    """Start the same training and kill -9 every process once `step` is logged."""
    process = start(torchrun_command(2, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *options))
    deadline = time.monotonic() + 200
    try:
        while not ((run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step):
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline, "training did not get to the step"
            time.sleep(0.02)
    finally:
        kill_tree(process)
        process.communicate(timeout=100)


@pytest.fixture(scope="module")
def whole(finished_in_two: Path) -> dict[int, float]:
    return losses(finished_in_two)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed between its checkpoints of steps 4 and 8."""
    run = tmp_path_factory.mktemp("killed") / "run"
    # The cosine schedule must see the same number of steps, so the run is killed, not shortened.
    kill_after(run, 5, *TP2)
    assert newest(run) in ("step_00000004", "step_00000008")
    return run


def test_same_layout_bit_for_bit(whole: dict[int, float], killed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    assert train(2, run, *TP2) == whole


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        pytest.param(1, (), id="one process"),
        # Of a checkpoint itself `test_reshard` does so in every run, value for value.
        pytest.param(2, (), id="DP2", marks=pytest.mark.long),
        pytest.param(2, ("parallel.pipeline=2",), id="PP2"),
    ],
)
def test_another_layout(
    processes: int, options: tuple[str, ...], whole: dict[int, float], killed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    resumed = train(processes, run, *options)
    assert resumed.keys() == whole.keys()
    assert len(resumed) == 14
    for step, loss in whole.items():
        assert resumed[step] == pytest.approx(loss, rel=1e-5), step


def test_sigterm_saves_and_ends_cleanly(whole: dict[int, float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        interpreter("-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", "checkpoint.every=0")
    )
    deadline = time.monotonic() + 100
    while not ((run / "metrics.jsonl").exists() and losses(run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    stopped = max(losses(run))
    assert stopped < 14
    assert f"stopped at step {stopped}" in output
    assert newest(run) == f"step_{stopped:08d}"
    resumed = train(1, run)
    for step, loss in whole.items():
        assert resumed[step] == pytest.approx(loss, rel=1e-5), step
