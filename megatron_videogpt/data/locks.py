"""Locks that lie beside what they guard, for all machines that see it; and names that no two writers share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, unusable

PAUSE = 0.1
"""Seconds between two attempts."""

TELL = 10.0
"""Seconds after which the log says what is waited for."""

log = logging.getLogger(__name__)


class Held(UserError):
    """Another process has the lock.  holder: as it wrote itself into the file."""

    def __init__(self, holder: str, about: str) -> None:
        self.holder = holder
        super().__init__(about)


def partial_name(path: str | os.PathLike[str]) -> Path:
    """A new name beside ``path``, for what will replace it.  Random, because machines have processes of equal ids."""
    return Path(f"{os.fspath(path)}.{secrets.token_hex(8)}.partial")


def write_whole(path: str | os.PathLike[str], action: Callable[[Path], Any]) -> None:
    """A file that appears whole: ``action`` writes it under another name.

    Readers see the old one or the new one, and several processes may write the same one at the same time.
    """
    partial = partial_name(path)
    try:
        action(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, seconds: float, doing: str, forks: bool = False) -> Iterator[str]:
    """One process at a time, on all machines, is in this block; ``path`` is a file that is made for it and stays.

    Where the file system has no locks, nobody waits: what is written must be right with several writers too.

    Args:
        seconds: to wait for another process; 0 for none.
        doing: what is done in the block, for messages.
        forks: whether the block may fork processes that live on when this one is killed.

    Yields:
        The holder before, where it was killed; else "".

    Raises:
        Held: another process had the lock for so long: who, where, and what to do.
        UserError: the file cannot be opened or locked.
    """
    file = _open(path)
    mine = _close_in_children(file) if forks else [file]
    got, before = False, ""
    try:
        got = _acquire(file, path, seconds, doing)
        if got:
            before = _written(file)
            _write(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield before
    finally:
        if mine:
            mine.clear()
            if got:
                _write(file, "")
                fcntl.flock(file, fcntl.LOCK_UN)
            # The file stays, since one that is removed could be held twice.
            os.close(file)


def holder(path: Path) -> str:
    """Who is in a block of `locked` now; "" where nobody is, or where that cannot be seen."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return _holder(file)
    except OSError:
        return ""
    finally:
        os.close(file)


def _close_in_children(file: int) -> list[int]:
    """A forked child would hold the lock along, and so it closes the file.  What comes back is empty there, and is to
    be emptied before the file is closed here.
    """
    files = [file]

    def close() -> None:
        while files:
            os.close(files.pop())

    os.register_at_fork(after_in_child=close)
    return files


def _write(file: int, text: str) -> None:
    # Another user's file can be locked and not written.
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _written(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace")


def _open(path: Path) -> int:
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise unusable(path, error) from error


def _acquire(file: int, path: Path, seconds: float, doing: str) -> bool:
    """Whether the lock was got; False where there are no locks."""
    begin, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                log.warning(
                    "%s: this file system has no locks (%s): other processes may be %s at the same time",
                    path,
                    error.strerror,
                    doing,
                )
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise unusable(path, error) from error
        waited = time.monotonic() - begin
        if waited >= seconds:
            long = f", for more than {seconds:.0f} s" if seconds else ""
            who = _holder(file)
            raise Held(
                who,
                f"{path}: locked by {who}, which is {doing}{long}; wait until it has ended, or "
                "remove this file if it is not alive",
            )
        if waited >= TELL and not told:
            told = True
            log.warning("waiting for %s, which is %s (lock %s), up to %.0f s", _holder(file), doing, path, seconds)
        time.sleep(min(PAUSE, seconds))


def _holder(file: int) -> str:
    """As it wrote itself into its lock."""
    return _written(file) or "another process"
