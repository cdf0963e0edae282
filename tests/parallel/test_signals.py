"""Signals from a command's first moment on: whenever one comes, the command ends, and nothing half-written is left."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .launch import REPOSITORY, Process, interpreter, kill_tree, start, torchrun_command
from .test_errors import moving_square
from .test_resume import CONFIG

TRAIN = ("-m", "megatron_videogpt", "train", CONFIG, "train.steps=1000000", "checkpoint.every=0", "data.workers=1")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MOMENTS = (0.2, 0.5, 1.0, 2.0, 4.0)
LIMIT = 100
BLOCKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [2, 10, 15])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes that end with the test."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        kill_tree(process)
        process.wait()


def send_at(processes: list[Process], number: int, moments: tuple[float, ...]) -> None:
    """The signal to each process so many seconds from now."""
    begin = time.monotonic()
    for process, moment in sorted(zip(processes, moments), key=lambda pair: pair[1]):
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        process.send_signal(number)


def check_stopped(process: Process, number: int) -> None:
    """Ended cleanly; or by the signal itself, before Python was there to handle it."""
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode in (0, -number), errors[-2000:]
    assert process.returncode or re.search(r"^stopped (before the first step|at step \d+)", output, re.M), output


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_training_ends_whenever_it_is_asked(number: int, started: list[Process], tmp_path: Path) -> None:
    for moment in MOMENTS:
        started.append(start(interpreter(*TRAIN, f"train.output={tmp_path / str(moment)}"), cold=True))
    send_at(started, number, MOMENTS)
    for process in started:
        check_stopped(process, number)


def has_fork_server(process: Process) -> bool:
    """Whether its reader processes are being started, or have been."""
    for child in psutil.Process(process.pid).children():
        # Short-lived ones, a tool that is asked for its version, may end in between.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                return True
    return False


def test_training_ends_when_it_is_asked_while_readers_start(started: list[Process], tmp_path: Path) -> None:
    signals = (*SIGNALS, signal.SIGHUP)
    for number in signals:
        started.append(start(interpreter(*TRAIN, f"train.output={tmp_path / number.name}"), cold=True))
    waiting, deadline = dict(zip(signals, started)), time.monotonic() + LIMIT
    while waiting:
        assert time.monotonic() < deadline
        for number, process in list(waiting.items()):
            assert process.poll() is None, process.communicate()
            if has_fork_server(process):
                waiting.pop(number).send_signal(number)
        time.sleep(0.02)
    for number, process in zip(signals, started):
        check_stopped(process, number)
        assert process.returncode == 0


def test_training_ends_where_its_parent_had_the_signals_blocked(started: list[Process], tmp_path: Path) -> None:
    command = interpreter("-c", BLOCKED, *TRAIN, f"train.output={tmp_path / 'run'}")
    started.append(start(command, cold=True))
    send_at(started, signal.SIGTERM, (0.5,))
    # It cannot die of the signal: only who unblocks it hears of it.
    output, errors = started[0].communicate(timeout=LIMIT)
    assert (started[0].returncode, "as asked" in output) == (0, True), errors


def test_all_ranks_end_when_one_is_asked_early(started: list[Process], tmp_path: Path) -> None:
    run = tmp_path / "run"
    started.append(start(torchrun_command(2, *TRAIN, f"train.output={run}")))
    log, deadline = run / "logs" / "rank_00001.log", time.monotonic() + LIMIT
    while not (log.is_file() and (found := re.search(r"pid (\d+), rank 1 ", log.read_text()))):
        assert started[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    psutil.Process(int(found[1])).send_signal(signal.SIGUSR1)
    check_stopped(started[0], signal.SIGUSR1)
    assert started[0].returncode == 0


def test_other_commands_end_with_the_number_and_leave_nothing(
    finished: Path, started: list[Process], tmp_path: Path
) -> None:
    tools, videos, out = REPOSITORY / "tools", tmp_path / "videos", tmp_path / "out"
    videos.mkdir(), out.mkdir()
    moving_square(videos / "a.mp4", 24)
    commands = (
        (tools / "prepare_videos.py", videos, "--output", out / "shards"),
        (tools / "encode_latents.py", videos, "--output", out / "latents", "--codec", "tiny"),
        (tools / "convert_checkpoint.py", "to-hf", finished, "--output", out / "hf"),
        ("-m", "megatron_videogpt", "sample", "--checkpoint", finished, "--scene", "fall/1", "--output", out / "a.mp4"),
    )
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    for command in commands:
        started.append(start(interpreter(*command), cold=True))
    time.sleep(0.4)
    for process, number in zip(started, numbers):
        process.send_signal(number)
    for process, number in zip(started, numbers):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode in (128 + number, -number), errors
        said = [line for line in errors.splitlines() if line.startswith(f"stopped by {number.name}; ")]
        assert len(said) == (process.returncode > 0), errors
    assert list(out.iterdir()) == []


def test_preparing_ends_between_shards_and_leaves_no_process(started: list[Process], tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    moving_square(videos / "0.mp4", 24, side=128)
    for copy in range(1, 400):
        shutil.copy(videos / "0.mp4", videos / f"{copy}.mp4")
    words = ("--output", out, "--shard-count", 2, "--workers", 1)
    started.append(
        start([sys.executable, str(REPOSITORY / "tools" / "prepare_videos.py"), str(videos), *map(str, words)])
    )
    while not list(out.glob("*.tar")):
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.01)
    family = psutil.Process(started[0].pid).children(recursive=True)
    started[0].send_signal(signal.SIGTERM)
    _, errors = started[0].communicate(timeout=LIMIT)
    assert started[0].returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM; the same command goes on after the last finished shard\n" in errors
    assert not (out / "report.json").exists() and not (out / "index.npz").exists()
    assert psutil.wait_procs(family, timeout=LIMIT)[1] == []
