"""A rank that is killed or hangs ends the run with one line that names it, and the run goes on as if nothing had
happened.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .launch import REPOSITORY, Process, children, kill_tree, start, torchrun, torchrun_command
from .test_resume import CONFIG, losses

LAYOUT = ("parallel.tensor=2", "parallel.sequence=true")
LIMIT = 500


def launch(run: Path, processes: int, restarts: int, cold: bool = False) -> Process:
    command = torchrun_command(
        processes,
        f"--max-restarts={restarts}",
        "-m",
        "megatron_videogpt",
        "train",
        CONFIG,
        f"train.output={run}",
        *LAYOUT,
    )
    return start(command, cold=cold)


def kill_rank_after(process: Process, run: Path, rank: int, step: int) -> int:
    """SIGKILL one rank as soon as `step` is logged; returns its process id."""
    deadline = time.monotonic() + LIMIT
    while not ((run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not get to the step"
        time.sleep(0.02)
    found = re.search(rf"pid (\d+), rank {rank} ", (run / "logs" / f"rank_{rank:05d}.log").read_text())
    assert found and int(found[1]) in children(process)
    os.kill(int(found[1]), signal.SIGKILL)
    return int(found[1])


def error_lines(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error")]


@pytest.fixture(scope="module")
def in_four(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("in_four") / "run"
    torchrun(4, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *LAYOUT)
    return losses(run)


def test_a_killed_rank_is_named_and_the_run_resumes(finished_in_two: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(run, 2, restarts=0)
    pid = kill_rank_after(process, run, rank=1, step=5)
    # The limit of a collective operation is 30 minutes: nobody waits for it.
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = error_lines(errors)
    assert line.startswith(f"error: rank 1 (pid {pid} on ") and "died during '" in line and "rank_00001.log" in line
    # The launcher's own report is all that may look like a traceback.
    assert "megatron_videogpt/train" not in errors.replace(str(run), "")
    assert max(losses(run)) < 14
    process = launch(run, 2, restarts=0)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert "resumed from" in output
    assert losses(run) == losses(finished_in_two)


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """A run whose rank 1 hangs; it ends by itself while other tests go on."""
    run = tmp_path_factory.mktemp("hanging") / "run"
    script = str(REPOSITORY / "tests" / "parallel" / "hang_worker.py")
    process = start(
        torchrun_command(2, script, "train", CONFIG, f"train.output={run}", "train.timeout_minutes=0.75", *LAYOUT)
    )
    yield process, run
    kill_tree(process)


@pytest.mark.long
@pytest.mark.usefixtures("hanging")
def test_max_restarts_does_so_unattended(in_four: dict[int, float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The launcher itself is what is tested: nothing of it is forked.
    process = launch(run, 4, restarts=1, cold=True)
    pid = kill_rank_after(process, run, rank=1, step=5)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    (line,) = error_lines(errors)
    assert f"rank 1 (pid {pid} on " in line
    assert "resumed from" in output
    assert losses(run) == in_four
    logs = [(run / "logs" / f"rank_0000{rank}.log").read_text() for rank in (0, 2, 3)]
    assert all("restart 0" in log and "restart 1" in log for log in logs)
    # Whoever finds it first says it; the others may only see that a rank has ended.
    assert any("error: rank 1 (pid " in log for log in logs)


@pytest.mark.long
def test_a_hanging_rank_is_named_with_what_it_did(hanging: tuple[Process, Path]) -> None:
    process, run = hanging
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    (line,) = error_lines(errors)
    assert line.startswith("error (rank 1): 'reading data of step 3' took longer than train.timeout_minutes = 0.75;")
    # The numbers of step 2 are read when step 3 has work on the device, which it never has.
    assert max(losses(run)) == 1
