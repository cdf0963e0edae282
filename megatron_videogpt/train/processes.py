"""What the kernel knows of processes: which live, since when, what they started."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def _stat(pid: int | str) -> list[str]:
    """What the kernel says of a process: state, parent, group, ..., start at place 19 (`man proc_pid_stat`, without the
    first two); empty when it is gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_start_time(pid: int) -> str | None:
    """When a process started, as the kernel counts; None when it is gone or only waits to be reaped.  "?" where /proc
    does not say.
    """
    fields = _stat(pid)
    if not fields:
        return None if os.path.isdir("/proc/self") or not _answers(pid) else "?"
    return None if fields[0] in "ZX" else fields[19]


def kill_children(pid: int) -> None:
    """Kill the helpers that a rank leaves behind (loaders, checkpoint writers): its children, and its process group
    where it leads one.
    """
    for path in Path("/proc").glob("[0-9]*/stat"):
        other, fields = int(path.parent.name), _stat(path.parent.name)
        if fields and other != pid and str(pid) in fields[1:3]:
            try:
                os.kill(other, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def launcher() -> int:
    """Process id of torchrun's agent; -1 when it died before this process got here, and the system's first process took
    its place.
    """
    parent = os.getppid()
    try:
        return -1 if parent == 1 and b"torch" not in Path("/proc/1/cmdline").read_bytes() else parent
    except OSError:
        return parent
