"""The watchdog over real processes: who died, what took too long, and silence where an error was told already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_videogpt.errors import UserError
from megatron_videogpt.launch import private_folder
from megatron_videogpt.train.connections import is_lost_connection
from megatron_videogpt.train.processes import process_start_time
from megatron_videogpt.train.watchdog import Watchdog

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN = """
import os, sys, time
from pathlib import Path
from megatron_videogpt.train.logs import open_log, start_logs
from megatron_videogpt.train.watchdog import Watchdog
rank, output = int(os.environ["RANK"]), Path(sys.argv[1])
start_logs(output, rank)
open_log()
"""
FOREVER = "time.sleep(600)"  # as good as a collective operation that never returns

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one rank with the given body inside the watchdog's context; all are killed in the end."""
    processes: list[subprocess.Popen[str]] = []

    def one(
        rank: int, body: str, minutes: float = 10.0, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        script = f"{BEGIN}with Watchdog({minutes}, output) as watchdog:\n    print('ready', flush=True)\n    {body}\n"
        env = {
            **os.environ,
            "RANK": str(rank),
            "MASTER_PORT": "1",
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            **environment,
        }
        command = [*prefix, sys.executable, "-c", script, str(tmp_path / "run")]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield one
    for process in processes:
        process.kill()
        process.wait()


def wait_until_ready(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"


def ends(*processes: subprocess.Popen[str]) -> tuple[list[int], list[str]]:
    """Exit codes, and the lines that all of them wrote to stderr."""
    errors = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], [line for text in errors for line in text.splitlines()]


def test_one_line_names_the_killed_rank_and_what_it_did(start: Start, tmp_path: Path) -> None:
    ranks = [start(rank, f"watchdog.phase('step 7'); {FOREVER}") for rank in range(3)]
    wait_until_ready(*ranks)
    time.sleep(0.5)
    ranks[1].send_signal(signal.SIGKILL)
    codes, lines = ends(ranks[0], ranks[2])
    assert codes == [1, 1]
    (line,) = lines
    assert line.startswith(f"error: rank 1 (pid {ranks[1].pid} on ") and "died during 'step 7'" in line
    assert str(tmp_path / "run" / "logs" / "rank_00001.log") in line and "same command" in line


def test_helpers_of_a_killed_rank_are_ended(start: Start, tmp_path: Path) -> None:
    body = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); open(sys.argv[1] + f'/child_{rank}', "
        "'w').write(str(child.pid)); " + FOREVER
    )
    ranks = [start(rank, body, prefix=("setsid",)) for rank in range(2)]
    wait_until_ready(*ranks)
    time.sleep(0.5)
    children = [int((tmp_path / "run" / f"child_{rank}").read_text()) for rank in range(2)]
    ranks[1].send_signal(signal.SIGKILL)
    codes, lines = ends(ranks[0])
    assert codes == [1] and len(lines) == 1
    deadline = time.monotonic() + 30
    while any(process_start_time(pid) is not None for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_proper_end_is_no_death(start: Start) -> None:
    first, second = start(0, "time.sleep(1)"), start(1, "time.sleep(5)")
    assert ends(first, second) == ([0, 0], [])


def test_an_error_of_its_own_is_told_once(start: Start) -> None:
    other = start(0, FOREVER)
    failing = start(1, "time.sleep(1); raise ValueError('mine')")
    codes, lines = ends(other, failing)
    assert codes == [1, 1]
    assert [line for line in lines if line.startswith(("error", "ValueError"))] == ["ValueError: mine"]


def test_a_phase_that_lasts_too_long_is_named(start: Start) -> None:
    slow = start(
        0, f"time.sleep(2); watchdog.phase('quick'); watchdog.phase('reading data of step 7'); {FOREVER}", minutes=0.05
    )
    codes, (line,) = ends(slow)
    assert codes == [1]
    assert line.startswith("error (rank 0): 'reading data of step 7' took longer than train.timeout_minutes = 0.05")


def test_a_process_that_was_stopped_for_a_while_does_not_hang(start: Start) -> None:
    body = (
        "import megatron_videogpt.train.watchdog as module; module.STOOD_STILL = 1.5; watchdog.phase('step 7'); "
        f"print('stopping', flush=True); [time.sleep(0.1) for _ in range(15)]; print('went on', flush=True); {FOREVER}"
    )
    suspended = start(0, body, minutes=0.05)
    wait_until_ready(suspended)
    assert suspended.stdout is not None and suspended.stdout.readline() == "stopping\n"
    suspended.send_signal(signal.SIGSTOP)
    time.sleep(4)
    suspended.send_signal(signal.SIGCONT)
    assert suspended.stdout.readline() == "went on\n"
    # What hangs while it runs is still found.
    codes, (line,) = ends(suspended)
    assert codes == [1] and line.startswith("error (rank 0): 'step 7' took longer")


def test_an_unlimited_phase_may_last(start: Start) -> None:
    assert ends(start(0, "watchdog.phase('predicting', limited=False); time.sleep(2)", minutes=0.01)) == ([0], [])


def test_a_lost_connection_is_one_line(start: Start, tmp_path: Path) -> None:
    body = (
        "watchdog.phase('saving'); raise RuntimeError('[tcp/pair.cc:1] Connection closed by peer "
        "[10.0.0.1]\\nfrom the depths')"
    )
    codes, (line,) = ends(start(0, body))
    assert codes == [1]
    assert line.startswith(
        "error (rank 0): 'saving' failed: [tcp/pair.cc:1] Connection closed by peer [10.0.0.1]; a rank on "
        "another node may be gone"
    )
    log = (tmp_path / "run" / "logs" / "rank_00000.log").read_text()
    assert "start: host" in log and "Traceback" in log and "from the depths" in log


def test_a_lost_connection_to_a_killed_neighbour_names_it(start: Start) -> None:
    killed = start(1, FOREVER)
    wait_until_ready(killed)
    body = f"os.kill({killed.pid}, 9); raise RuntimeError('gloo: Connection reset by peer')"
    codes, lines = ends(start(0, body))
    assert codes == [1] and len(lines) == 1
    assert lines[0].startswith(f"error: rank 1 (pid {killed.pid} ")


def test_nobody_outlives_the_launcher(start: Start, tmp_path: Path) -> None:
    # The shell waits, as torchrun would.
    shell = start(
        0,
        "open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); " + FOREVER,
        prefix=("bash", "-c", '"$@"; true', "bash"),
        TORCHELASTIC_RUN_ID="x",
    )
    wait_until_ready(shell)
    time.sleep(0.5)
    worker = int((tmp_path / "run" / "pid").read_text())
    shell.kill()
    _, (line,) = ends(shell)
    assert f"error: the launcher (torchrun, pid {shell.pid}) is gone" in line
    deadline = time.monotonic() + 30
    while process_start_time(worker) is not None:  # its pipes close a moment before it is gone
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_which_errors_are_lost_connections() -> None:
    class DistBackendError(type("DistError", (RuntimeError,), {})):  # type: ignore[misc]
        pass

    assert is_lost_connection(DistBackendError("x"))
    assert is_lost_connection(RuntimeError("Timed out waiting 1800000ms for recv operation to complete"))
    assert not is_lost_connection(ValueError("gloo"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def place_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ranks of this user look for each other."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"megatron_videogpt_{os.getuid()}"


def test_ranks_meet_where_nobody_else_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(tmp_path, monkeypatch)
    assert private_folder() == private_folder() == place and place.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("RANK", "0")
    with Watchdog(1.0, tmp_path / "run") as watchdog:
        assert watchdog._folder is not None and watchdog._folder.parent == place
        # What a launcher left that is gone; what has no such name is not ours.
        (place / "999999_1_1_0").mkdir()
        (place / "notes_a_b_c").mkdir()
        assert Watchdog(1.0, tmp_path / "run")._folder == watchdog._folder
        assert not (place / "999999_1_1_0").exists() and (place / "notes_a_b_c").exists()


@pytest.mark.parametrize("kind", ["link", "file", "open", "foreign"])
def test_a_place_that_somebody_else_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place, elsewhere = place_of(tmp_path, monkeypatch), tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.mkdir(mode=0o700)
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.touch(mode=0o600)
    else:
        place.mkdir(mode=0o700)
        place.chmod(0o777 if kind == "open" else 0o700)
    if kind == "foreign":
        real = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result([*real(path)[:4], 12345, *real(path)[5:]]))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=f"{place}: .*expected a folder of user {os.getuid()} with mode 0700.*TMPDIR"):
        Watchdog(1.0, tmp_path / "run")
    assert not elsewhere.is_dir() or not list(elsewhere.iterdir())


def test_the_same_fault_of_all_ranks_is_one_traceback(start: Start, tmp_path: Path) -> None:
    # All at once, however unlike they start: who comes much later than the first is ended without a word of its own.
    together = f"[time.sleep(0.05) for _ in iter(lambda: os.path.exists({str(tmp_path / 'go')!r}), True)]"
    ranks = [start(rank, f"{together}; raise KeyError('mine')") for rank in range(3)]
    wait_until_ready(*ranks)
    (tmp_path / "go").touch()
    codes, lines = ends(*ranks)
    assert set(codes) == {1} and lines.count("KeyError: 'mine'") == 3
    # The others raise PeerFailed from it, which the command line keeps to itself.
    assert (
        sum("PeerFailed: rank " in line and "failed in the same way: KeyError: 'mine'" in line for line in lines) == 2
    )
