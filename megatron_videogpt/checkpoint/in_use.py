"""Whether a run is going on in a folder: its rank 0 holds a lock there (`train.folder`)."""

from __future__ import annotations

import socket
from pathlib import Path

from ..data.locks import holder
from ..errors import UserError

LOCK = ".train.lock"


def check_free(output: Path) -> None:
    """Raise UserError where a run is in a folder, which must not be moved or replaced then."""
    who = holder(output / LOCK)
    if who:
        raise taken(output, who)


def taken(output: Path, who: str) -> UserError:
    """To be raised where `who` has the lock of a folder."""
    elsewhere = " on " in who and f" on {socket.gethostname()} " not in who
    # A file system across machines may keep the lock of one that is down.
    down = f" (if that machine is down: remove {output / LOCK})" if elsewhere else ""
    return UserError(
        f"train.output = {output}: a run is going on there ({who}); wait until it has ended{down}, or use another "
        "train.output"
    )
