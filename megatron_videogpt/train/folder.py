"""One run at a time in a run's folder: rank 0 holds a lock there from before anything is written until the run ends."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.in_use import LOCK, taken
from ..data.locks import Held, locked
from ..errors import UserError
from .logs import open_log

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds to wait for the lock: whoever only looks (`check_free`) has it for a moment, and so has a child that is
forked just as its parent is killed.
"""

RESTART_PATIENCE = 15.0
"""Seconds after torchrun has started a run anew: the lock of a rank 0 on another node may outlive it a little."""


@contextlib.contextmanager
def run_folder(output: Path, rank: int = 0) -> Iterator[None]:
    """The folder of a run, made where there is none; no other run is in it inside the block.

    Rank 0 asks for all and opens its log.  The others must write nothing there before they have met it: in a process
    group, which rank 0 joins only with the folder.

    Raises:
        UserError: another run is there, or there can be no such folder.
    """
    with contextlib.ExitStack() as stack:
        if rank == 0:
            killed = _enter(stack, output)
            open_log()
            if killed:
                log.info("the run that was here before was killed (%s); this one goes on from what it left", killed)
        yield


def _enter(stack: contextlib.ExitStack, output: Path) -> str:
    """Take the lock until the stack unwinds; who had it before and was killed, or ""."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        seconds = RESTART_PATIENCE if restarted else PATIENCE
        return stack.enter_context(locked(output / LOCK, seconds, "training there", forks=True))
    except Held as error:
        raise taken(output, error.holder) from error
    except OSError as error:
        why = "this is a file" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"train.output = {output}: {why}; expected a folder, or a place for a new one") from error
    except UserError as error:
        raise UserError(f"train.output = {output}: cannot be locked ({error}); use another train.output") from error
