"""What is remembered of signals, by a parent's mask too; blocks that they end; processes that begin with them held."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_videogpt.data.workers import Pool
from megatron_videogpt.signals import STOP_SIGNALS

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN = """
import os, signal, subprocess, sys, time
from megatron_videogpt import signals
"""
BEFORE = {
    "as usual": "",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)",
    "ignored": "[signal.signal(n, signal.SIG_IGN) for n in signals.STOP_SIGNALS]",
}
"""What a parent may hand down."""
REMEMBERS = """
signals.remember()
os.kill(os.getpid(), int(sys.argv[1]))
os.kill(os.getpid(), signal.SIGTERM)
print(signals.asked(), signals.waiting() > 0, signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set())
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print('at once')
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a worker of the tests may run them beside its main thread, which alone hears signals."""
    command = [sys.executable, "-c", BEGIN + program, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(("before", "number"), list(zip(BEFORE, STOP_SIGNALS)), ids=BEFORE)
def test_the_first_signal_is_remembered_whatever_the_parent_handed_down(before: str, number: int) -> None:
    again = f"[sys.executable, '-c', {BEGIN + REMEMBERS!r}, '{int(number)}']"
    done = run(f"{BEFORE[before]}\nos.execv(sys.executable, {again})")
    # Not the second, SIGTERM; and Ctrl-C after any of them ends at once.
    assert done.stdout.splitlines() == [f"{int(number)} True True", "at once"], done.stderr


def test_what_came_while_it_was_blocked_is_not_lost() -> None:
    done = run(f"{BEFORE['blocked']}\nos.kill(os.getpid(), 15)\nsignals.remember()\nprint(signals.asked())")
    assert done.stdout == "15\n", done.stderr


@pytest.mark.parametrize(("handler", "asked"), [("SIG_DFL", 1), ("SIG_IGN", 0)])
def test_a_lost_terminal_asks_to_stop_unless_nohup_is_in_front(handler: str, asked: int) -> None:
    done = run(
        f"signal.signal(1, signal.{handler})\nsignals.remember()\nos.kill(os.getpid(), 1)\nprint(signals.asked())"
    )
    assert done.stdout == f"{asked}\n", done.stderr


UNTIL = """
signals.remember()
{before}
try:
    with signals.until_signal():
        try:
            {work}
        finally:
            print('tidied')
except signals.Interrupted as stopped:
    sys.exit(signals.exit_code(stopped, 'give it again'))
"""
SLEEP = "time.sleep(60)"
SEND = "os.kill(os.getpid(), 10)"
SWALLOWED = """
            try:
                os.kill(os.getpid(), 10)
            except BaseException:
                pass
"""


@pytest.mark.parametrize(
    ("before", "work", "said"),
    [
        pytest.param("", f"{SEND}; {SLEEP}", "tidied\n", id="inside"),
        pytest.param(SEND, SLEEP, "", id="before"),
        pytest.param("", SWALLOWED, "tidied\n", id="swallowed at the end"),
        pytest.param("", f"{SWALLOWED}            {SLEEP}", "tidied\n", id="swallowed in the middle"),
    ],
)
def test_a_signal_ends_a_block_and_its_command(before: str, work: str, said: str) -> None:
    done = run(UNTIL.format(before=before, work=work))
    assert (done.returncode, done.stdout) == (128 + 10, said), done.stderr
    assert done.stderr == "stopped by SIGUSR1; give it again\n"


TIDIES = f"""
        try:
                {SEND}
            finally:
                time.sleep(1.5)
                {SEND}
                print('whole')
                raise OSError('full')
"""


def test_tidying_up_is_not_disturbed_by_more_of_them_and_its_error_is_told() -> None:
    done = run(UNTIL.format(before="", work=TIDIES.strip()))
    assert (done.returncode, done.stdout) == (128 + 10, "whole\ntidied\n"), done.stderr
    assert done.stderr == "stopped by SIGUSR1 (OSError: full); give it again\n"


def test_a_function_leaves_handlers_mask_and_record_as_they_were() -> None:
    done = run(
        "handlers = lambda: [signal.getsignal(n) for n in (*signals.STOP_SIGNALS, signal.SIGALRM)]\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [10])\n"
        "before = handlers()\n"
        "try:\n"
        "    with signals.until_signal():\n"
        "        os.kill(os.getpid(), 10)\n"
        "except signals.Interrupted as stopped:\n"
        "    print(stopped.number, signals.asked(), before == handlers())\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {10})\n"
    )
    assert done.stdout == "10 0 True\nTrue\n", done.stderr


STATUS = "print([line for line in open('/proc/self/status') if line.startswith('SigBlk')][0].split()[1])"


def test_processes_begin_with_signals_held_and_the_block_ends_before_it_acts() -> None:
    done = run(
        "try:\n"
        "    with signals.until_signal():\n"
        "        with signals.held():\n"
        f"            {SEND}\n"
        f"            subprocess.run([sys.executable, '-c', {STATUS!r}], check=True)\n"
        "            print('whole', flush=True)\n"
        "        print('never')\n"
        "except signals.Interrupted:\n"
        "    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    mask, *rest = done.stdout.splitlines()
    assert held(mask) and rest == ["whole", "set()"], done.stderr


def held(mask: str) -> bool:
    """Whether a mask of /proc has all of them."""
    return all(int(mask, 16) >> (number - 1) & 1 for number in STOP_SIGNALS)


def masks(number: int) -> dict[str, str]:
    """SigBlk, SigIgn, ... of the process that this runs in."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): line[1] for line in lines if line[0].startswith("Sig")}


def test_readers_do_not_hear_them_from_their_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Pool(masks, 1, 60) as pool:
        pool.submit(0, 0)
        found = pool.wait(0)
    assert held(found["SigBlk"]) and held(found["SigIgn"])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
