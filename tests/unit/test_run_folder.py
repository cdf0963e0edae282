"""One run at a time in a folder: two that start at once, one that was killed, folders that cannot be had, and logs that
wait for the folder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint.in_use import check_free
from megatron_videogpt.errors import PeerFailed, UserError
from megatron_videogpt.train import folder, logs
from megatron_videogpt.train.folder import run_folder

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys
from pathlib import Path
from megatron_videogpt.errors import UserError
from megatron_videogpt.train import folder
folder.PATIENCE = 0.3
print("ready", flush=True)
sys.stdin.readline()
try:
    with folder.run_folder(Path(sys.argv[1])):
        child = os.fork() if sys.argv[2:] else -1
        if child:
            print("in", child, flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handlers and hooks as they were before; and no long waits."""
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    root = logging.getLogger()
    before, level, hook, show = list(root.handlers), root.level, threading.excepthook, warnings.showwarning
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, threading.excepthook, warnings.showwarning = before, level, hook, show


def hold(run: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that goes into a run's folder when it is told to, and out of it when it is told again."""
    command = [sys.executable, "-c", HOLD, str(run), *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_several_at_once_one_is_in_and_the_others_name_it(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    processes = [hold(run) for _ in range(3)]
    for process in processes:
        tell(process)
    answers = {process.pid: answer(process) for process in processes}
    (winner,) = [pid for pid, said in answers.items() if said == "in -1"]
    who = f"process {winner} on {socket.gethostname()} since "
    for said in answers.values():
        assert said == "in -1" or said.startswith(f"train.output = {run}: a run is going on there ({who}")
        assert said == "in -1" or said.endswith("); wait until it has ended, or use another train.output")
    with pytest.raises(UserError, match="a run is going on there"):
        check_free(run)
    for process in processes:
        process.communicate("\n")
    check_free(run)
    assert (run / ".train.lock").read_text() == ""


def test_a_killed_holder_is_followed_though_its_children_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The child may come to life late on a busy machine.
    monkeypatch.setattr(folder, "PATIENCE", 30.0)
    logs.start_logs(tmp_path, 0)
    process = hold(tmp_path, "fork")
    tell(process)
    child = int(answer(process).split()[1])
    process.kill()
    process.wait()
    assert Path(f"/proc/{child}").exists()
    with run_folder(tmp_path):
        said = (tmp_path / "logs" / "rank_00000.log").read_text()
    assert f"was killed (process {process.pid} on " in said
    # The child reads the end of this.
    assert process.stdin is not None
    process.stdin.close()
    with run_folder(tmp_path):
        pass
    assert (tmp_path / "logs" / "rank_00000.log").read_text() == said, "an end of its own is none that is told"


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder(tmp_path), run_folder(tmp_path):
        check_free(tmp_path)
    (line,) = {record.getMessage() for record in caplog.records}
    assert "no locks (Operation not supported): other processes may be training there at the same time" in line


def test_a_machine_that_is_down_may_still_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_folder(tmp_path):
        (tmp_path / ".train.lock").write_text("process 7 on node-a since 2026-11-30 05:00:00")
        with pytest.raises(UserError) as caught, run_folder(tmp_path):
            raise AssertionError("two at once")
    assert f"until it has ended (if that machine is down: remove {tmp_path / '.train.lock'}), or" in str(caught.value)


def test_folders_that_cannot_be_had(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "odd" / ".train.lock").mkdir(parents=True)
    for place, why in (
        (file, "this is a file; expected a folder, or a place for a new one"),
        (file / "run", "Not a directory; expected"),
        (Path("/proc/run"), "No such file or directory; expected"),
        (tmp_path / "odd", rf"cannot be locked \({tmp_path}/odd/.train.lock: Is a directory\); use another"),
    ):
        with pytest.raises(UserError, match=f"^train.output = {place}: {why}") as caught, run_folder(place):
            raise AssertionError("there is no such folder")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rank", "error", "written"),
    [(1, OSError("from the depths"), True), (1, PeerFailed(0, "rank 0 failed"), False), (0, UserError("taken"), False)],
)
def test_a_rank_alone_tells_its_story_and_no_other(tmp_path: Path, rank: int, error: Exception, written: bool) -> None:
    logs.start_logs(tmp_path / "run", rank)
    logs.log_failure(error)
    assert (tmp_path / "run").exists() == written
    if written:
        said = (tmp_path / "run" / "logs" / "rank_00001.log").read_text()
        assert "start: host" in said and "from the depths" in said


def test_records_wait_for_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    logs.start_logs(run, 1)
    with run_folder(run, 1):
        logging.getLogger("a").info("before")
        assert not run.exists()
        logs.open_log()
        logging.getLogger("a").info("behind")
        logs.open_log()
        kept = [line.rsplit(": ", 1)[1] for line in (run / "logs" / "rank_00001.log").read_text().splitlines()]
    assert kept[0].startswith("host ") and kept[1:] == ["before", "behind"]
    assert os.listdir(run) == ["logs"]
