"""What a run records beside its checkpoints, on a disk that may be full: training needs none of it and goes on."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

STORAGE = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG"),  # no room: the disk, the user's quota, the process's limit
        *("EIO", "EROFS", "ENODEV", "ENXIO"),  # an ailing disk, and how a system mounts it then
        *("ENOENT", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN"),  # a folder or a server that is gone
        *("EACCES", "EPERM", "EKEYEXPIRED"),  # a ticket for network storage ends in the middle of a long run
    )
    if hasattr(errno, name)
}
"""Kinds of OSError after which a run goes on: what a storage does in its own time.  Others (a closed file, a folder in
a file's place) are faults of the program.
"""

WAITING = 16 << 20
"""Bytes of one file that wait in memory for room; the oldest go first."""


@dataclass
class Loss:
    """count: of units that are lost, from step `first` to `last` where steps are known; note: what else is wrong."""

    count: int = 0
    unit: str = ""
    first: int | None = None
    last: int | None = None
    note: str = ""

    def __str__(self) -> str:
        words = f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"
        if self.first is not None:
            words += f" (step {self.first})" if self.first == self.last else f" (steps {self.first} to {self.last})"
        return f"{words} ({self.note})" if self.note else words


class Records:
    """Says once of each kind of record that it cannot be written, and at the end of the run what is lost.  Used as a
    context manager around it; any thread may use it.

    rank: of this process; every rank speaks for itself.
    """

    def __init__(self, rank: int = 0) -> None:
        self.label = "warning" if rank == 0 else f"warning (rank {rank})"
        self.losses: dict[str, Loss] = {}
        # A signal's handler may print while this thread counts.
        self._lock = threading.RLock()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        text = self.summary()
        if text:
            self._say(text)

    def attempt(self, kind: str, action: Callable[[], Any], unit: str = "", step: int | None = None) -> bool:
        """Whether `action` wrote what it had to; if not, that is told.  unit, step: what is lost then, if anything is.

        Raises whatever is no error of `STORAGE`.
        """
        try:
            action()
            return True
        except OSError as error:
            if error.errno not in STORAGE:
                raise
            self.failed(kind, error)
        if unit:
            self.lost(kind, unit, step)
        return False

    def failed(self, kind: str, error: object) -> None:
        """A kind of record cannot be written now."""
        with self._lock:
            if kind in self.losses:
                return
            self.losses[kind] = Loss()
        # Where standard error is what cannot be written, this would only be lost as well.
        reason = getattr(error, "strerror", None) or error
        self._say(f"{kind}: {reason}; training goes on, and what is lost is said at its end", kind != "standard error")

    def lost(self, kind: str, unit: str, step: int | None = None, count: int = 1, note: str = "") -> None:
        """Count what will not be written any more."""
        with self._lock:
            loss = self.losses.setdefault(kind, Loss())
            loss.count, loss.unit, loss.note = loss.count + count, unit, note or loss.note
            if step is not None:
                loss.first = step if loss.first is None else min(loss.first, step)
                loss.last = step if loss.last is None else max(loss.last, step)

    def summary(self) -> str:
        """One line on what is lost, and on what was written late; empty where all was well."""
        with self._lock:
            lost = [f"{kind} {loss}" for kind, loss in self.losses.items() if loss.count or loss.note]
            late = [kind for kind, loss in self.losses.items() if not (loss.count or loss.note)]
        parts = [("lost, since it could not be written: ", lost), ("written late, but whole: ", late)]
        return "; ".join(words + ", ".join(kinds) for words, kinds in parts if kinds)

    def _say(self, text: str, screen: bool = True) -> None:
        if screen:
            with contextlib.suppress(OSError):
                print(f"{self.label}: {text}", file=sys.stderr, flush=True)
        log.info(text)


class Appended:
    """A file that grows by whole pieces in their order.  What there is no room for waits in memory, and is written
    before the next piece that there is room for; so is what must be done before: dropping old pieces.

    Opened for each piece: some network file systems tell only as a file is closed that there is no room.

    unit: what a piece is called; head: what a new file begins with.
    """

    def __init__(self, path: Path, kind: str, records: Records, unit: str, head: bytes = b"") -> None:
        self.path, self.kind, self.records, self.unit, self.head = path, kind, records, unit, head
        self.before: list[Callable[[], Any]] = []
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._whole: int | None = None

    def add(self, step: int, piece: bytes) -> None:
        """Append a piece; it is in the file when this returns, if the disk takes it.  step: what it tells of."""
        self._waiting.append((step, piece))
        self._bytes += len(piece)
        self.flush()
        while self._bytes > WAITING:
            self.records.lost(self.kind, self.unit, self._next()[0])

    def flush(self) -> None:
        """Try to do and to write what waits."""
        if self.before or self._waiting:
            self.records.attempt(self.kind, self._write)

    def close(self) -> None:
        """The last attempt; what waits still is lost."""
        self.flush()
        if self.before:
            self.records.lost(self.kind, self.unit, count=0, note="what an interrupted run left is still in it")
        while self._waiting:
            self.records.lost(self.kind, self.unit, self._next()[0])

    def _next(self) -> tuple[int, bytes]:
        step, piece = self._waiting.popleft()
        self._bytes -= len(piece)
        return step, piece

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self.before:
            self.before[0]()
            del self.before[0]
        while self._waiting:
            self._append(self._waiting[0][1])
            self._next()

    def _append(self, piece: bytes) -> None:
        """All of it or nothing, so that no reader meets half a piece."""
        self._cut()
        self._whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                left = piece if self._whole else self.head + piece
                while left:
                    left = left[file.write(left) :]
            self._whole = None
        finally:
            with contextlib.suppress(OSError):
                self._cut()

    def _cut(self) -> None:
        """Remove what a failed attempt has left."""
        if self._whole is not None and self.path.exists():
            os.truncate(self.path, self._whole)
        self._whole = None
