"""Requests to stop: SIGINT, SIGTERM, SIGUSR1 and SIGHUP, kept from a program's first moment until something can act
on them.

A signal is the process's and comes at any line, so that what its handler knows is this module's: one record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .errors import Stopped, one_line

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGUSR1 is Slurm's warning before the time limit; SIGHUP comes when a terminal or its connection is closed."""

AGAIN = 1.0
"""Seconds after which `Interrupted` is raised again where something has swallowed it."""


class Interrupted(BaseException):
    """A signal ends the command.  No Exception: whoever handles errors is not to keep it.

    number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class _Record:
    """number, when: of the first signal, 0 without one, and the monotonic clock then; raises: whether one raises
    Interrupted; held: blocks that put that off.
    """

    def __init__(self) -> None:
        self.number, self.when, self.raises, self.held = 0, 0.0, False, 0


_record = _Record()


def asked() -> int:
    """The first signal that asked this process to stop; 0 where none did."""
    return _record.number


def waiting() -> float:
    """Seconds since that signal; 0 without one."""
    return time.monotonic() - _record.when if _record.number else 0.0


def stop_alone() -> None:
    """Raise Stopped where this process was asked to stop and is the only one of its run; ranks agree first, in
    `together.stop_together`.
    """
    if asked() and os.environ.get("WORLD_SIZE", "1") == "1":
        done()
        raise Stopped


def remember() -> None:
    """Keep every request from now on, also where the parent process had the signals blocked or ignored (but SIGHUP
    stays ignored, as nohup asks); a second Ctrl-C raises KeyboardInterrupt.

    To be called before anything else is imported.  Does nothing in a thread, where Python sets no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def done() -> None:
    """The work is done and recorded: Python would restore the default, death, while it shuts down."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """`remember` for this block; handlers, mask and record are as before then, but for a program that has called it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _handle:
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    mask, number = signal.pthread_sigmask(signal.SIG_BLOCK, ()), _record.number
    remember()
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _record.number = number


@contextlib.contextmanager
def until_signal() -> Iterator[None]:
    """A block that a signal ends with Interrupted, one that came earlier included; to be entered when imports are over.

    However the block ends, it ends with Interrupted once a signal has come.  Does nothing in a thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with remembered():
        alarm = signal.signal(signal.SIGALRM, _handle)
        _record.raises = True
        try:
            _act()
            yield
        except BaseException as error:
            if _record.number and not isinstance(error, Interrupted):
                raise Interrupted(_record.number) from error
            raise
        finally:
            _record.raises = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        if _record.number:
            raise Interrupted(_record.number)


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """A wait for other ranks in C code, where no handler of Python runs.  Within `until_signal` a signal ends the
    process there as if nobody handled it: nothing is written yet, and the others may be gone for good.
    """
    if not _record.raises:
        yield
        return
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is _handle]
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        remember()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block at whose end requests are acted on, and whose new processes begin with the signals blocked: torchrun and
    Slurm signal a whole session, and a process that does not yet ignore them would die.
    """
    from multiprocessing import resource_tracker

    main = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    _record.held += main
    try:
        # Here, because it unblocks two of them when it starts its process.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        _record.held -= main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if main:
            _act()


def exit_code(stopped: Interrupted, after: str) -> int:
    """128 and the signal's number, as shells count, with one line on stderr.

    after: what to do next.
    """
    # What went wrong while the command ended would be lost.
    cause = stopped.__cause__
    also = "" if cause is None or isinstance(cause, KeyboardInterrupt) else f" ({one_line(cause)})"
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped by {stopped}{also}; {after}", file=sys.stderr, flush=True)
    return 128 + stopped.number


def _handle(number: int, frame: Any) -> None:
    if number == signal.SIGINT and _record.number and not _record.held:
        raise KeyboardInterrupt
    if number != signal.SIGALRM and not _record.number:
        _record.number, _record.when = number, time.monotonic()
    _act()


def _act() -> None:
    if _record.number and _record.raises and not _record.held and not _ending():
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        raise Interrupted(_record.number)


def _ending() -> bool:
    """Whether what this interrupts is at work on the end already: files are removed, processes ended."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, (Interrupted, KeyboardInterrupt)):
        error = error.__context__
    return error is not None
