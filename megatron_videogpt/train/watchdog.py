"""Ends a run that cannot go on, with one line that says why, where a rank would wait for ever or die in a traceback of
its communication library.

Three things end a run: a phase of the main thread that lasts longer than `train.timeout_minutes`; another process of
this node that was killed; and the launcher's own death.  A thread looks twice a second, since the main thread may sit
inside a collective operation that never returns.

The processes of one launcher (torchrun's agent on a node) find each other through a folder of small files, named after
the launcher and its restart count, in a place that its user alone can enter: what stands there decides whose processes
are ended.  That needs no network, works before the process group exists and while it hangs, and cannot mix up the
process ids of two machines.  A process that ends properly removes its file; one that fails with an error of its own
writes so; what a killed one leaves says neither.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import signals
from ..errors import PeerFailed, UserError, is_user_error, one_line
from ..launch import private_folder
from .connections import is_lost_connection
from .logs import log_path, open_log
from .processes import kill_children, launcher, process_start_time

INTERVAL = 0.5
"""Seconds between two looks."""

STOOD_STILL = 5.0
"""Seconds between two looks from which on the process was stopped meanwhile, not only slow."""

GRACE = 3.0
"""Seconds that a lost connection waits for the news of who died: sockets close before the process is gone."""

STALE = 60.0
"""Seconds: files older than this at the start belong to an earlier round of the same launcher."""

RESTART = "the same command goes on from the newest complete checkpoint; torchrun --max-restarts=N does so by itself"

REPORTED = "reported"  # file with what the first rank that ended told

JOINING = "joining the process groups"
"""The phase in which a rank waits for others that may never come."""

ALONE = 10.0
"""Seconds that a rank which was asked to stop waits for the others to join, so that all end alike."""

JOINT_GRACE = 2.0
"""Seconds that a rank gives the others it waits for."""


@dataclass(frozen=True)
class Phase:
    """What the main thread does, since when (seconds, monotonic), whether `train.timeout_minutes` limits it, seconds on
    top of that, and how long the process had stood still before.
    """

    name: str
    since: float
    limited: bool
    grace: float = 0.0
    still: float = 0.0


class Watchdog:
    """A context for the whole run; `phase` says what comes next.  Works with torchrun and without (then only phases are
    watched).

    An exception that leaves the context passes through, but for lost connections: these become one line and the
    process's end.
    """

    def __init__(self, timeout_minutes: float, output: Path) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.timeout_minutes, self.output = timeout_minutes, output
        self.log = logging.getLogger(__name__)
        self._now = Phase("starting", time.monotonic(), True)
        self._still = 0.0
        self._stop = threading.Event()
        self.launcher = launcher() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._started = time.time()
        self._born = process_start_time(os.getpid())
        self._folder = self._meet() if "RANK" in os.environ else None
        self._file, self._told = -1, False

    def phase(self, name: str, limited: bool = True, joint: bool = False) -> None:
        """What the main thread does from now on; `limited=False` where a long time is no sign of trouble (collectives
        keep their own limit).

        joint: it waits for other ranks, so that one of them which hangs in a phase of its own should speak first.
        """
        self._now = Phase(name, time.monotonic(), limited, JOINT_GRACE if joint else 0.0, self._still)
        self._write("running")

    def __enter__(self) -> Watchdog:
        if self._folder is not None:
            self._file = os.open(self._folder / f"rank_{self.rank:05d}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            self._write("running")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_lost_connection(error):
            self.log.error("lost a connection", exc_info=error)
            self._explain(error)
        self._stop.set()
        self._thread.join()
        if error is not None:
            self._write("failed")
            self._tell_once(error)
        elif self._folder is not None:
            (self._folder / f"rank_{self.rank:05d}").unlink(missing_ok=True)
            try:
                self._folder.rmdir()
            except OSError:  # not empty: others are still at work
                pass

    def _tell_once(self, error: BaseException) -> None:
        """Raise PeerFailed where a neighbour has failed in just this way: one traceback is enough."""
        text = one_line(error)
        if (
            isinstance(error, Exception)
            and not is_user_error(error)
            and not isinstance(error, PeerFailed)
            and not self._is_first(text)
        ):
            rank, said = self._reported()
            if said == text:
                raise PeerFailed(int(rank), f"rank {rank} failed in the same way: {text}") from error

    def _meet(self) -> Path:
        """The folder that the processes of this launcher share; folders of launchers that are gone are removed."""
        parent, root = os.getppid(), private_folder()
        for old in root.glob("*_*_*_*"):
            pid, when = old.name.split("_")[:2]
            if pid.isdigit() and process_start_time(int(pid)) != when and int(pid) != parent:
                shutil.rmtree(old, ignore_errors=True)
        port, restart = (os.environ.get(name, "0") for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
        folder = root / f"{parent}_{process_start_time(parent) or '?'}_{port}_{restart}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _write(self, state: str) -> None:
        if self._file >= 0:
            about = {"rank": self.rank, "pid": os.getpid(), "born": self._born, "state": state, "phase": self._now.name}
            # One write of constant length: a reader never sees half of an old and half of a new text.
            try:
                os.pwrite(self._file, json.dumps(about).ljust(400).encode(), 0)
            except OSError as error:
                if not self._told:
                    self._told = True
                    self.log.warning(
                        "%s: cannot be written (%s); others are not told what it does", self._folder, error
                    )

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(self._pause()):
            # Ctrl-Z, and Slurm when it suspends a job, stop a process: no sign of a hang when it goes on.
            since, looked = looked, time.monotonic()
            if looked - since > STOOD_STILL:
                self._still += looked - since
            now = self._now
            lasted = self._lasted(now)
            if now.limited and lasted > 60 * self.timeout_minutes + now.grace:
                limit = f"train.timeout_minutes = {self.timeout_minutes:g}"
                self._end(
                    f"error (rank {self.rank}): '{now.name}' took longer than {limit}; this rank or one it "
                    "waits for hangs: compare the ends of "
                    f"{log_path(self.output, self.rank).parent}, or raise the limit where so long is right; {RESTART}",
                    own=True,
                )
            if now.name == JOINING and min(lasted, signals.waiting()) > ALONE:
                self._end(
                    f"rank {self.rank}: stopped as asked while '{JOINING}'; the others did not come within "
                    f"{ALONE:g} s; {RESTART}"
                )
            self._look()
            if self.launcher and os.getppid() != self.launcher:
                self._end(
                    f"error: the launcher (torchrun, pid {self.launcher}) is gone, and a run cannot go on "
                    f"without it; {RESTART}"
                )

    def _lasted(self, phase: Phase) -> float:
        """Seconds of a phase in which the process could run."""
        return time.monotonic() - phase.since - (self._still - phase.still)

    def _pause(self) -> float:
        """Seconds to the next look: the very end of the phase's time, where that is nearer."""
        now = self._now
        left = 60 * self.timeout_minutes + now.grace - self._lasted(now) + 0.001
        return min(INTERVAL, max(0.001, left)) if now.limited else INTERVAL

    def _siblings(self) -> list[dict[str, Any]]:
        """The other processes of this launcher, as they describe themselves."""
        found = []
        for path in sorted(self._folder.glob("rank_*")) if self._folder is not None else ():
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
                if about["rank"] != self.rank and path.stat().st_mtime > self._started - STALE:
                    found.append(about)
            except (OSError, ValueError):  # ended in this moment, or has not written yet
                continue
        return found

    def _look(self) -> None:
        """End this process if another one of this launcher is dead: with a line when it was killed, silently when it
        printed its own.
        """
        dead = [about for about in self._siblings() if process_start_time(about["pid"]) != about["born"]]
        # A process that ended between the two looks has removed its file by now.
        dead = [about for about in dead if (self._folder or Path()).joinpath(f"rank_{about['rank']:05d}").exists()]
        killed = [about for about in dead if about["state"] == "running"]
        if killed and len(killed) == len(dead):
            who = ", ".join(f"rank {about['rank']} (pid {about['pid']} on {socket.gethostname()})" for about in killed)
            for about in killed:
                kill_children(about["pid"])
            logs = ", ".join(str(log_path(self.output, about["rank"])) for about in killed)
            self._end(
                f"error: {who} died during '{killed[0]['phase']}': killed, or out of memory; see {logs} and "
                f"the kernel's log (dmesg); {RESTART}"
            )
        if dead:
            self._end("")

    def _explain(self, error: BaseException) -> None:
        """End this process after a lost connection: with the news of a dead neighbour, or else with what the library
        said.
        """
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            self._look()
            time.sleep(0.05)
        if any(about["state"] == "failed" for about in self._siblings()):
            self._end("")
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        what = f"'{self._now.name}' failed: {said}"
        self._end(
            f"error (rank {self.rank}): {what}; a rank on another node may be gone or unreachable: look for "
            f"its own error line; {RESTART}"
        )

    def _end(self, line: str, own: bool = False) -> None:
        """Print `line` unless a neighbour has printed its own, and end the process now: nothing that waits for other
        ranks would return.

        own: the reason is this rank's, which may not have met the others yet.
        """
        self._write("failed")
        if line and self._is_first():
            try:
                os.write(2, f"{line}\n".encode())
            except OSError:  # the terminal may have gone with the launcher
                pass
        # What follows takes locks that the stuck main thread may hold.
        threading.Timer(1.0, os._exit, (1,)).start()
        if own:
            with contextlib.suppress(UserError):
                open_log()
        self.log.info(line or "another rank of this node has ended with an error; see its own line")
        sys.stdout.flush()
        # Nobody would end them, and they hold the launcher's pipes open.
        kill_children(os.getpid())
        os._exit(1)

    def _is_first(self, text: str = "") -> bool:
        """Whether no rank of this node has told yet why it ends; text: what this one tells."""
        if self._folder is None:
            return True
        try:
            file = os.open(self._folder / REPORTED, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(file, f"{self.rank} {text}".encode())
        os.close(file)
        return True

    def _reported(self) -> tuple[str, str]:
        """(rank, text) of the first one."""
        rank, _, text = ((self._folder or Path()) / REPORTED).read_text(encoding="utf-8").partition(" ")
        return rank, text
