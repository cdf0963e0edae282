"""Reader processes: results by number, arrays, errors, stuck and dying processes, and nothing left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_videogpt.data import reader
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.workers import Pool
from megatron_videogpt.train.processes import process_start_time


def work(task: tuple) -> object:
    """A task says what is to happen."""
    kind, *rest = task
    if kind == "array":
        number, shape = rest
        return {
            "pid": os.getpid(),
            "picture": np.random.RandomState(number).randint(0, 256, shape, np.uint8),
            "many": [np.arange(n) for n in range(5)],
        }
    if kind == "bad":
        raise BadVideo("a.mp4", "torn\napart", "truncated")
    if kind == "wrong":
        raise ValueError("data.frames=0: must be at least 1")
    if kind == "odd":
        raise Unpicklable("x", 3)
    if kind == "lambda":
        return lambda: 0
    if kind == "sleep":
        time.sleep(rest[0])
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    return task


class Unpicklable(Exception):
    def __init__(self, a: str, b: int) -> None:
        super().__init__(f"{a} {b}")


def fail_to_start() -> None:
    raise ValueError("no such device")


def die_at_start() -> None:
    os._exit(7)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def alive(pid: int) -> bool:
    return bool(process_start_time(pid))


def test_results_come_in_any_order_and_arrays_are_equal() -> None:
    with Pool(work, 2, 60) as pool:
        shapes = [(0,), (3,), (700, 1000, 3), (5, 5)] * 8
        for number, shape in enumerate(shapes):
            pool.submit(number, ("array", number, shape))
        pids = set()
        for number in np.random.RandomState(0).permutation(len(shapes)).tolist():
            result = pool.wait(number)
            np.testing.assert_array_equal(
                result["picture"], np.random.RandomState(number).randint(0, 256, shapes[number], np.uint8)
            )
            assert result["picture"].flags.writeable and [a.tolist() for a in result["many"]] == [
                list(range(n)) for n in range(5)
            ]
            pids.add(result["pid"])
        assert len(pids) == 2 and os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


def test_results_larger_than_a_slot_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "KEPT", 1 << 16)
    with Pool(work, 1, 60) as pool:
        for number in range(4):
            pool.submit(number, ("array", number, (1 << 20,)))
        for number in range(4):
            np.testing.assert_array_equal(
                pool.wait(number)["picture"], np.random.RandomState(number).randint(0, 256, 1 << 20, np.uint8)
            )
        assert all(os.fstat(memory).st_size < 1 << 16 for worker in pool._group.workers for memory in worker.slots)


@pytest.mark.parametrize("count", [0, 1])
def test_errors_travel(count: int) -> None:
    with Pool(work, count, 60) as pool:
        for number, kind in enumerate(("bad", "wrong", "odd", "fine")):
            pool.submit(number, (kind,))
        with pytest.raises(BadVideo, match="^a.mp4: torn apart$") as bad:
            pool.wait(0)
        assert bad.value.kind == "truncated" and bad.value.path == "a.mp4"
        with pytest.raises(ValueError, match="^data.frames=0: must be at least 1$"):
            pool.wait(1)
        with pytest.raises(Exception, match="x 3$"):
            pool.wait(2)
        assert pool.wait(3) == ("fine",)


def test_what_cannot_be_pickled_is_an_error_of_its_task() -> None:
    with Pool(work, 1, 60) as pool:
        pool.submit(0, ("lambda",))
        pool.submit(1, (lambda: 0,))
        pool.submit(2, ("fine",))
        assert pool.wait(2) == ("fine",)
        for number in (0, 1):
            with pytest.raises(Exception, match="pickle"):
                pool.wait(number)


def test_a_stuck_reader_is_named_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with Pool(work, 2, 3.0, label=lambda task: f"shard-000012.tar[{task[0]}]") as pool:
        pool.submit(0, ("sleep", 600))
        for number in range(1, 40):
            pool.submit(number, ("fine", number))
        assert [pool.wait(number) for number in range(1, 40)] == [("fine", number) for number in range(1, 40)]
        with pytest.raises(
            BadVideo, match=r"shard-000012.tar\[sleep\]: its reader did not finish in [3-9] s"
        ) as stalled:
            pool.wait(0)
        assert (
            stalled.value.kind == "stalled"
            and "shard-000012.tar[sleep]" in caplog.text
            and len(pool._group.workers) == 2
        )


@pytest.mark.parametrize(("kind", "end"), [("kill", "signal 9"), ("fault", "signal 11"), ("exit", "exit code 3")])
def test_a_reader_that_dies_costs_its_task_alone(kind: str, end: str) -> None:
    with Pool(work, 1, 60) as pool:
        for number, task in enumerate([("fine", 0), (kind,), ("fine", 2), (kind,), ("fine", 4), ("stop",)]):
            pool.submit(number, task)
        assert [pool.wait(number) for number in (0, 2, 4)] == [("fine", number) for number in (0, 2, 4)]
        for number in (1, 3):
            with pytest.raises(BadVideo, match=f"its reader ended with {end}$") as crashed:
                pool.wait(number)
            assert crashed.value.kind == "crashed"
        # Readers do not hear the signals that ask a trainer to save.
        assert pool.wait(5) == ("stop",)


def test_an_idle_reader_that_dies_is_replaced() -> None:
    with Pool(work, 1, 60) as pool:
        pool.submit(0, ("array", 0, (1,)))
        os.kill(pool.wait(0)["pid"], signal.SIGKILL)
        time.sleep(0.3)
        pool.submit(1, ("fine",))
        assert pool.wait(1) == ("fine",)


def test_readers_that_do_not_start_are_an_error() -> None:
    with Pool(work, 2, 60, start=fail_to_start) as pool:
        pool.submit(0, ("fine",))
        with pytest.raises(ValueError, match="no such device"):
            pool.wait(0)
    with Pool(work, 1, 60, start=die_at_start) as pool:
        pool.submit(0, ("fine",))
        with pytest.raises(RuntimeError, match="reader processes do not start: the last one ended with exit code 7"):
            pool.wait(0)


def opens(count: int) -> bool:
    """Whether so many files are open, or will be soon: readers that replace others start in their own time."""
    end = time.monotonic() + 20
    while open_files() != count and time.monotonic() < end:
        time.sleep(0.1)
    return open_files() == count


def test_nothing_is_left_behind() -> None:
    """In a process of its own: what other tests left to the garbage collector would be counted too."""
    program = (
        "if __name__ == '__main__':\n    from tests.data.test_workers import leave_nothing_behind\n    "
        "leave_nothing_behind()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-3000:]


def leave_nothing_behind() -> None:
    with Pool(work, 1, 60) as pool:
        # The fork server stays, with a few files.
        pool.submit(0, ("fine",))
        pool.wait(0)
    before = open_files()
    pool = Pool(work, 2, 60)
    pids = set()
    for number in range(400):
        pool.submit(number, ("kill",) if number % 100 == 50 else ("array", number, (50_000,)))
    for number in range(400):
        if number % 100 == 50:
            with pytest.raises(BadVideo):
                pool.wait(number)
        else:
            pids.add(pool.wait(number)["pid"])
    # A reader has its slots, a pipe and two files of multiprocessing; the pool has a pipe; those that were killed have
    # nothing.
    assert opens(before + 2 * (reader.SLOTS + 3) + 2) and not pool._group.results
    # Whoever forgets to close a pool, and a reader that does not listen.
    pool.submit(1000, ("sleep", 600))
    time.sleep(0.3)
    del pool
    gc.collect()
    assert opens(before) and not any(alive(pid) for pid in pids)


def test_a_program_that_ends_without_closing_ends(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import time\n"
        "from megatron_videogpt.data.workers import Pool\n"
        "if __name__ == '__main__':\n"
        "    pool = Pool(time.sleep, 2, 600)\n"
        "    pool.submit(0, 500)\n"
        "    pool.submit(1, 0)\n"
        "    pool.wait(1)\n"
        "    print('done')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
