"""One log file per rank, `<train.output>/logs/rank_00003.log`: what Python's `logging` and `warnings` say, and
exceptions with their tracebacks.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from .records import Records

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_path(output: Path, rank: int) -> Path:
    """The log file of a rank of the run in `output`."""
    return output / "logs" / f"rank_{rank:05d}.log"


def start_logs(output: Path, rank: int, records: Records | None = None) -> None:
    """Send log records and warnings of this process to its file (appended; each start writes a line), those of rank 0
    from WARNING on to stderr as well.  records: told of what the file does not take.

    Errors: OSError when the file cannot be written.
    """
    path = log_path(output, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(FORMAT))
    file.setLevel(logging.INFO)
    file.handleError = _lost(path, records or Records(rank))  # type: ignore[assignment]
    root = logging.getLogger()
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    root.addHandler(file)
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
    """Write an exception with its traceback into the log file; does nothing before `start_logs`."""
    if any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers):
        logging.getLogger(__name__).error("this rank failed", exc_info=error)
