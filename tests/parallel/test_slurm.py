"""The batch script with a stand-in for Slurm's commands; everything else is real: bash, torchrun, training."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .launch import REPOSITORY
from .test_resume import CONFIG, losses

# As srun does: one task here with its node's number, and signals are passed on to the task.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" &
task=$!
trap 'kill -USR1 $task' USR1
trap 'kill -TERM $task' TERM
while kill -0 $task 2>/dev/null; do sleep 0.2; done
wait $task
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >>"$CALLS"; fi
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Where scontrol writes what it was asked to do."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def submit(calls: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PATH": f"{calls.parent / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    env |= {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "NPROC_PER_NODE": "2",
    }
    command = ["bash", "examples/slurm.sbatch", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_the_warning_before_the_time_limit_saves_and_queues_again(calls: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (CONFIG, f"train.output={run}", "checkpoint.every=0", "parallel.tensor=2")
    job = submit(calls, *arguments, "train.steps=2000")
    deadline = time.monotonic() + 400
    while not ((run / "metrics.jsonl").exists() and losses(run)):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, errors = job.communicate(timeout=400)
    assert job.returncode == 0, errors
    stopped = max(losses(run))
    assert f"stopped at step {stopped} as asked; saved" in output and "the same command resumes" in output
    assert (run / "checkpoints" / f"step_{stopped:08d}" / "state.json").is_file()
    assert calls.read_text() == "requeue 77\n"
    # The next turn of the same job ends by itself, and stays away from the queue.
    job = submit(calls, *arguments, f"train.steps={stopped + 1}")
    output, errors = job.communicate(timeout=400)
    assert job.returncode == 0, errors
    assert "resumed from" in output and max(losses(run)) == stopped + 1
    assert calls.read_text() == "requeue 77\n"


def test_a_job_that_fails_is_not_queued_again(calls: Path, tmp_path: Path) -> None:
    job = submit(calls, CONFIG, f"train.output={tmp_path / 'run'}", "parallel.tensor=4")
    _, errors = job.communicate(timeout=100)
    assert job.returncode == 2
    assert [line for line in errors.splitlines() if line.startswith("error")][0].startswith(
        "error: parallel.tensor = 4"
    )
    assert calls.read_text() == ""
