"""One log file per rank, `<train.output>/logs/rank_00003.log`: what Python's `logging` and `warnings` say, and
exceptions with their tracebacks.

A second run in the folder of a living one must leave no trace there, so that records stay in memory until it is known
that the folder is this run's (`folder.run_folder`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from logging.handlers import MemoryHandler
from pathlib import Path

from ..errors import PeerFailed, unusable
from .records import Records

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_path(output: Path, rank: int) -> Path:
    """The log file of a rank of the run in `output`."""
    return output / "logs" / f"rank_{rank:05d}.log"


class LogFile(MemoryHandler):
    """What this process logs: in memory until `begin`, then in its file."""

    def __init__(self, output: Path, rank: int, records: Records) -> None:
        super().__init__(sys.maxsize, sys.maxsize)
        self.output, self.rank, self.records = output, rank, records
        self.setLevel(logging.INFO)

    def begin(self) -> None:
        """Write what was kept into the file (appended), and what follows as it comes; OSError where it cannot be
        written.
        """
        if self.target is not None:
            return
        path = log_path(self.output, self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter(FORMAT))
        file.handleError = _lost(path, self.records)  # type: ignore[assignment]
        self.capacity = 1
        self.setTarget(file)
        self.flush()


def _newest() -> LogFile | None:
    """Of the newest `start_logs`."""
    return next((one for one in reversed(logging.getLogger().handlers) if isinstance(one, LogFile)), None)


def open_log() -> None:
    """To be called once the folder is this run's; UserError where this rank's file cannot be written.  Does nothing
    before `start_logs`.
    """
    file = _newest()
    if file is not None:
        try:
            file.begin()
        except OSError as error:
            raise unusable(f"train.output = {file.output}", error) from error


def start_logs(output: Path, rank: int, records: Records | None = None) -> None:
    """Keep log records and warnings of this process for its file (each start writes a line), and send those of rank 0
    from WARNING on to stderr as well.  records: told of what the file does not take.
    """
    root = logging.getLogger()
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    root.addHandler(LogFile(output, rank, records or Records(rank)))
    if rank == 0 and not any(getattr(handler, "stream", None) is sys.stderr for handler in root.handlers):
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        screen.setLevel(logging.WARNING)
        # Failures are printed as one line where they are handled; only the file has the whole story.
        screen.addFilter(lambda record: record.exc_info is None)
        root.addHandler(screen)
    logging.captureWarnings(True)
    environment = {
        name: os.environ.get(name, default)
        for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_RESTART_COUNT", "0"))
    }
    world, local, restart = environment.values()
    logger = logging.getLogger(__name__)
    logger.info(
        "start: host %s, pid %d, rank %d (local %s) of %s, restart %s",
        socket.gethostname(),
        os.getpid(),
        rank,
        local,
        world,
        restart,
    )
    threading.excepthook = _thread_failed


def _lost(path: Path, records: Records) -> Callable[[logging.LogRecord], None]:
    """Says once that log records cannot be written (a full disk), in place of a traceback for each."""
    kind = f"logs/{path.name}"

    def say(record: logging.LogRecord) -> None:
        records.failed(kind, sys.exc_info()[1])
        records.lost(kind, "record")

    return say


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread's exception: into the log, and then to the screen as usual."""
    if failure.exc_value is not None:
        logging.getLogger(__name__).error("exception in a thread", exc_info=failure.exc_value)
    threading.__excepthook__(failure)


def log_failure(error: BaseException) -> None:
    """Write an exception with its traceback into the log file; does nothing before `start_logs`.

    A rank that has not met rank 0 yet writes all the same: nobody else has its story.  Not so rank 0, to whom the
    folder does not belong then, and whoever only ends with another rank.
    """
    file = _newest()
    if file is None:
        return
    logging.getLogger(__name__).error("this rank failed", exc_info=error)
    if file.rank and not isinstance(error, PeerFailed):
        with contextlib.suppress(OSError):
            file.begin()
