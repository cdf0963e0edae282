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
def locked(path: Path, seconds: float, doing: str) -> Iterator[None]:
    """One process at a time, on all machines, is in this block; ``path`` is a file that is made for it and stays.

    Where the file system has no locks, nobody waits: what is written must be right with several writers too.

    Args:
        seconds: to wait for another process; 0 for none.
        doing: what is done in the block, for messages.

    Raises:
        UserError: the file cannot be written, or another process had the lock for so long: who, where, and what to do.
    """
    file = _open(path)
    try:
        if _acquire(file, path, seconds, doing):
            # Another user's file can be locked and not written.
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(
                    file,
                    f"process {os.getpid()} on {socket.gethostname()} since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')}".encode(),
                    0,
                )
        yield
    finally:
        # Closing gives it back; the file stays, since one that is removed could be held twice.
        os.close(file)


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
                raise
        waited = time.monotonic() - begin
        if waited >= seconds:
            long = f", for more than {seconds:.0f} s" if seconds else ""
            raise UserError(
                f"{path}: locked by {_holder(file)}, which is {doing}{long}; wait until it has ended, or "
                "remove this file if it is not alive"
            )
        if waited >= TELL and not told:
            told = True
            log.warning("waiting for %s, which is %s (lock %s), up to %.0f s", _holder(file), doing, path, seconds)
        time.sleep(min(PAUSE, seconds))


def _holder(file: int) -> str:
    """As it wrote itself into its lock."""
    return os.pread(file, 200, 0).decode(errors="replace") or "another process"
