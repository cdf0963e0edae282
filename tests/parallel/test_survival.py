"""A rank that is killed or hangs ends the run with one line that names it, and the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .launch import REPOSITORY, python_path, torchrun
from .test_resume import CONFIG, losses

LAYOUT = ("parallel.tensor=2", "parallel.sequence=true")
LIMIT = 500


def launch(run: Path, restarts: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=4", "--standalone", f"--max-restarts={restarts}"]
    command += ["-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *LAYOUT]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def worker(agent: int, rank: int) -> int:
    """Process id of one rank: a child of the launcher with that RANK in its environment."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{agent}\n" in status.read_text() and f"RANK={rank}" in (status.parent / "environ").read_text().split("\0"):
                return int(status.parent.name)
        except OSError:  # ended meanwhile
            continue
    raise AssertionError(f"{agent} has no child of rank {rank}")


def kill_rank_after(process: subprocess.Popen[str], run: Path, rank: int, step: int) -> int:
    """SIGKILL one rank as soon as `step` is logged; returns its process id."""
    deadline = time.monotonic() + LIMIT
    while not ((run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not get to the step"
        time.sleep(0.02)
    pid = worker(process.pid, rank)
    os.kill(pid, signal.SIGKILL)
    return pid


def error_lines(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("whole") / "run"
    torchrun(4, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *LAYOUT)
    return losses(run)


def test_a_killed_rank_is_named_and_the_run_resumes(whole: dict[int, float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(run, restarts=0)
    pid = kill_rank_after(process, run, rank=2, step=5)
    # The limit of a collective operation is 30 minutes: nobody waits for it.
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = error_lines(errors)
    assert line.startswith(f"error: rank 2 (pid {pid} on ") and "died during '" in line and "rank_00002.log" in line
    # The launcher's own report is all that may look like a traceback.
    assert "megatron_videogpt/train" not in errors.replace(str(run), "")
    assert max(losses(run)) < 14
    process = launch(run, restarts=0)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert "resumed from" in output
    assert losses(run) == whole


@pytest.mark.long
def test_max_restarts_does_so_unattended(whole: dict[int, float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(run, restarts=1)
    pid = kill_rank_after(process, run, rank=1, step=5)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    (line,) = error_lines(errors)
    assert f"rank 1 (pid {pid} on " in line
    assert "resumed from" in output
    assert losses(run) == whole
    logs = [(run / "logs" / f"rank_0000{rank}.log").read_text() for rank in (0, 2, 3)]
    assert all("restart 0" in log and "restart 1" in log for log in logs)
    # Whoever finds it first says it; the others may only see that a rank has ended.
    assert any("error: rank 1 (pid " in log for log in logs)


@pytest.mark.long
def test_a_hanging_rank_is_named_with_what_it_did(tmp_path: Path) -> None:
    script = str(REPOSITORY / "tests" / "parallel" / "hang_worker.py")
    options = (f"train.output={tmp_path / 'run'}", "train.timeout_minutes=1.5", *LAYOUT)
    result = torchrun(2, script, "train", CONFIG, *options, check=False, timeout=LIMIT)
    assert result.returncode != 0
    (line,) = error_lines(result.stderr)
    assert line.startswith("error (rank 1): 'reading data of step 3' took longer than train.timeout_minutes = 1.5;")
    # The numbers of step 2 are read when step 3 has work on the device, which it never has.
    assert max(losses(tmp_path / "run")) == 1
