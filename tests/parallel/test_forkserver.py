"""A command that the fork server runs does what a fresh interpreter does: numbers, environment, exit codes, signals,
output (tests/forkserver.py).
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from .launch import Process, children, interpreter, run, start, torchrun, torchrun_command
from .test_resume import CONFIG, losses

ENDINGS = {
    "returns": "print('out'); print('err', file=sys.stderr)",
    "exits": "atexit.register(print, 'at the end'); sys.exit(3)",
    "exits with a text": "sys.exit('a reason')",
    "raises": "raise ValueError('wrong')",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "is terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "aborts": "os.abort()",
    "waits for its thread": "threading.Thread(target=lambda: (time.sleep(0.2), print('done'))).start()",
    "closes its output": "os.close(1); os.close(2)",
}
FACTS = """
import json, os, random, sys, multiprocessing
if __name__ == "__main__":
    import __main__
    facts = {"argv": sys.argv, "name": __name__, "file": __main__.__file__, "first": sys.path[0], "cwd": os.getcwd()}
    facts["path"] = sorted(set(sys.path))
    facts["environment"] = dict(os.environ)
    # A process that multiprocessing starts afresh finds this file as its main module.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        facts["spawned"] = pool.map(abs, [-2])
    facts["random"] = [random.random(), os.getppid(), os.getpid()]
    with open(f"{sys.argv[1]}.{os.environ.get('RANK', 0)}", "w") as file:
        json.dump(facts, file)
"""
WAITING = r"""
import os, signal, sys, time
def stopped(*_):
    os.write(1, f"stopped {os.environ['RANK']}\n".encode())
    sys.exit(0)
signal.signal(signal.SIGTERM, stopped)
os.write(1, b"ready\n")
if os.environ["RANK"] == "1" and sys.argv[1] == "fails":
    time.sleep(1)
    sys.exit(7)
time.sleep(100)
"""


@pytest.mark.parametrize("name", ENDINGS)
def test_a_command_ends_alike(name: str) -> None:
    command = interpreter("-c", f"import atexit, os, signal, sys, threading, time; {ENDINGS[name]}")
    cold, forked = run(command, cold=True), run(command)
    assert (cold.returncode, cold.stdout) == (forked.returncode, forked.stdout)
    # Tracebacks begin with the lines of the server.
    assert cold.stderr.splitlines()[-1:] == forked.stderr.splitlines()[-1:]


def facts(path: Path, rank: int) -> dict[str, object]:
    found = json.loads(path.with_name(f"{path.name}.{rank}").read_text())
    # An import of setuptools adds its own folder, once.
    found["path"] = [entry for entry in found["path"] if "_vendor" not in entry]
    for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"):
        # Of this launch alone, but there.
        assert found["environment"].pop(name), name
    return found


def test_ranks_find_what_torchrun_gives_them(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FACTS)
    where = tmp_path / "facts"
    torchrun(2, str(tmp_path / "program.py"), str(where), cold=True)
    cold = [facts(where, rank) for rank in range(2)]
    torchrun(2, str(tmp_path / "program.py"), str(where))
    forked = [facts(where, rank) for rank in range(2)]
    draws = [found.pop("random") for found in forked]
    assert draws[0][0] != draws[1][0] and draws[0][1] == draws[1][1] and draws[0][2] != draws[1][2]
    for found in cold:
        assert found.pop("random")
    for found, expected in zip(forked, cold, strict=True):
        differing = {
            name: (found[name], expected[name])
            for name in expected
            if name != "environment" and found[name] != expected[name]
        }
        assert not differing
        assert found["environment"] == expected["environment"] and found["spawned"] == [2]
    assert [found["environment"]["RANK"] for found in forked] == ["0", "1"]


def read_ready(process: Process) -> None:
    """Both ranks have installed their handlers."""
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize(
    "cold", [pytest.param(False, id="forked"), pytest.param(True, id="cold", marks=pytest.mark.long)]
)
def test_a_rank_that_fails_and_a_launcher_that_is_stopped_end_the_others(cold: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WAITING)
    failing, stopped, killed = (
        start(torchrun_command(2, str(tmp_path / "program.py"), how), cold=cold)
        for how in ("fails", "is stopped", "is killed")
    )
    try:
        for process in (failing, stopped, killed):
            read_ready(process)
        output, errors = failing.communicate(timeout=60)
        assert (failing.returncode, output) == (1, "stopped 0\n") and "exitcode  : 7 (pid:" in errors
        assert len(children(stopped)) == 2
        stopped.terminate()
        output, errors = stopped.communicate(timeout=60)
        assert (stopped.returncode, sorted(output.splitlines())) == (
            1,
            ["stopped 0", "stopped 1"],
        ) and "SIGTERM" in errors
        orphans = children(killed)
        killed.kill()
        assert killed.wait(timeout=60) == -signal.SIGKILL
        for pid in orphans:
            # Nobody has told them anything.
            os.kill(pid, signal.SIGTERM)
    finally:
        for process in (failing, stopped, killed):
            process.kill()


@pytest.mark.long
def test_losses_are_those_of_a_cold_launch(tmp_path: Path) -> None:
    command = (
        "-m",
        "megatron_videogpt",
        "train",
        CONFIG,
        "train.steps=5",
        "parallel.tensor=2",
        "parallel.sequence=true",
        "checkpoint.every=2",
    )
    torchrun(2, *command, f"train.output={tmp_path / 'cold'}", cold=True)
    # Neither changes a number; both start processes, which are forked as well.
    torchrun(2, *command, f"train.output={tmp_path / 'forked'}", "data.workers=1", "checkpoint.async_save=true")
    found = losses(tmp_path / "forked")
    assert len(found) == 5 and found == losses(tmp_path / "cold")
    kept, expected = (
        sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("forked", "cold")
    )
    assert kept == expected


def test_a_command_that_takes_too_long_is_ended_with_all_it_started() -> None:
    program = (
        "import os, subprocess, sys; p = subprocess.Popen(['sleep', '100']); open(sys.argv[1], "
        "'w').write(str(p.pid)); p.wait()"
    )
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"not done after 1 seconds \(its processes run\)"):
        run(interpreter("-c", program, os.devnull), timeout=1)
    assert time.monotonic() - started < 60
