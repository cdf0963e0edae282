"""Running a ladder: its runs one after another or several at a time, each in a process of its own, until all are over.

What is done lies in the runs' folders alone, so that whoever comes after a killed launcher goes on from there.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ... import launch
from ...errors import UserError
from .folder import LOGS, Listed, config_file
from .options import Ladder
from .state import OVER, RUNNING, State, state_of

PAUSE = 0.5
"""Seconds between two looks."""
NODE = 8
"""Devices of a node, for {nodes} of a command."""
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""Variables by which runs that share a machine keep to their own devices."""
MISTAKE = 2
"""Exit code of a run that only its user can mend: trying again would not help."""


@dataclass
class Job:
    """A run on its way.

    state: when it was last looked at; process: that this launcher has started, None for none; devices: their numbers;
    attempts: in a row without a new checkpoint; saved: the newest checkpoint before the last attempt; failed: why it is
    given up, "" where it is not.
    """

    run: Listed
    state: State
    process: subprocess.Popen[bytes] | None = None
    devices: tuple[int, ...] = ()
    attempts: int = 0
    saved: int = 0
    started: float = 0.0
    failed: str = ""

    @property
    def going(self) -> bool:
        """Whether it trains, here or in a process that somebody else has started."""
        return self.process is not None or self.state.kind == RUNNING

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, or nothing can be done."""
        return not self.going and (self.state.kind in OVER or bool(self.failed))


@dataclass
class Launcher:
    """jobs: in the order in which they are started; free: numbers of devices that nobody has; tell: is given a line for
    whatever happens.
    """

    output: Path
    ladder: Ladder
    jobs: list[Job]
    tell: Callable[[str], None]
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = list(range(self.ladder.gpus))
        for job in self.jobs:
            if job.state.kind in OVER:
                self.tell(f"{job.run.name}: {job.state.kind} before{_after(job.state.why)}")

    def go(self, show: Callable[[], None], minutes: float = 0.0) -> bool:
        """Run until all jobs are over, True, or for so many minutes, False; 0: without a limit.  show: called at every
        look.

        However it ends, the processes that were started here have ended too: asked to, they save first.
        """
        deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        try:
            while not all(job.over for job in self.jobs):
                if time.monotonic() >= deadline:
                    return False
                self.look()
                self.start_some()
                show()
                time.sleep(PAUSE)
            return True
        finally:
            self.stop()
            show()

    def look(self) -> None:
        """See what has become of every job."""
        for job in self.jobs:
            if job.over:
                continue
            ended = job.process.poll() if job.process is not None else None
            before, job.state = job.state, state_of(job.run)
            if ended is not None:
                self._ended(job, ended)
            elif job.process is None and job.state.kind != before.kind:
                self.tell(f"{job.run.name}: {job.state.kind}{_after(job.state.holder or job.state.why)}")

    def _ended(self, job: Job, code: int) -> None:
        """The process of a job has ended."""
        job.process, took = None, time.monotonic() - job.started
        self.free = sorted({*self.free, *job.devices})
        state, name = job.state, job.run.name
        if state.kind in OVER:
            self.tell(f"{name}: {state.kind} after {took:.0f} s{_after(state.why)}")
            return
        if state.saved > job.saved or state.kind == RUNNING:
            job.attempts = 0
        if state.kind == RUNNING:
            # Somebody else was there first.
            self.tell(f"{name}: trains already ({state.holder})")
            return
        said = _last_line(log_file(self.output, name))
        self.tell(f"{name}: ended at step {state.saved} with exit code {code}: {said}")
        if code == MISTAKE:
            job.failed = said
        elif job.attempts > self.ladder.retries:
            job.failed = f"{job.attempts} attempts without a new checkpoint (ladder.retries): {said}"
        if job.failed:
            self.tell(f"{name}: given up: {job.failed}")

    def start_some(self) -> None:
        """As many jobs as there are devices for."""
        most = self.ladder.at_once or len(self.jobs)
        for job in self.jobs:
            going = sum(other.going for other in self.jobs)
            # What trains already without us has devices that we do not know of.
            others = sum(other.run.devices for other in self.jobs if other.going and other.process is None)
            if going < most and not job.going and not job.over and job.run.devices <= len(self.free) - others:
                self._start(job)

    def _start(self, job: Job) -> None:
        run = job.run
        job.devices, self.free = tuple(self.free[: run.devices]), self.free[run.devices :]
        job.attempts, job.saved, job.started = job.attempts + 1, job.state.saved, time.monotonic()
        path = log_file(self.output, run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = command_of(run, self.ladder, config_file(self.output, run.name))
        environment = _environment(run, self.ladder, job.devices)
        with path.open("ab") as log:
            try:
                # A Ctrl-C is the launcher's, which asks each of them once.
                job.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            except OSError as error:
                raise UserError(
                    f"ladder.command: {command[0]} cannot be started ({error.strerror or error})"
                ) from error
        again = f", attempt {job.attempts}" if job.attempts > 1 else ""
        where = f" from step {job.state.saved}" if job.state.saved else ""
        self.tell(f"{run.name}: started{where} (process {job.process.pid}{again})")

    def stop(self) -> None:
        """Ask every process that was started here to end, and wait until they have."""
        waiting = [job for job in self.jobs if job.process is not None]
        if waiting:
            self.tell(f"asked to save and end: {', '.join(job.run.name for job in waiting)}")
        for job in waiting:
            assert job.process is not None
            if job.process.poll() is None:
                job.process.send_signal(signal.SIGTERM)
        for job in waiting:
            assert job.process is not None
            job.process.wait()
            job.process, job.state = None, state_of(job.run)
            self.free = sorted({*self.free, *job.devices})
            self.tell(f"{job.run.name}: {job.state.kind} at step {job.state.saved}")


def log_file(output: Path, name: str) -> Path:
    """What a run's processes print."""
    return output / LOGS / f"{name}.log"


def command_of(run: Listed, ladder: Ladder, config: Path) -> list[str]:
    """What starts a run, and ends with it.

    Raises:
        UserError: the ladder's own command has a name in braces that is not known.
    """
    trained = ["-m", "megatron_videogpt", "train", str(config)]
    if not ladder.command:
        if run.devices == 1:
            return [sys.executable, *trained]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.devices}"]
        return [sys.executable, *torchrun, *trained]
    filled = {
        "config": str(config),
        "name": run.name,
        "output": str(run.folder),
        "gpus": str(run.devices),
        "nodes": str(-(-run.devices // NODE)),
    }
    try:
        return [word.format_map(filled) for word in shlex.split(ladder.command)]
    except (KeyError, ValueError, IndexError) as error:
        known = ", ".join(f"{{{name}}}" for name in filled)
        raise UserError(
            f"ladder.command = {ladder.command!r}: cannot be filled in ({type(error).__name__}: {error}); what is "
            f"filled in is {known}, and {{{{ stands for a brace"
        ) from error


def _environment(run: Listed, ladder: Ladder, devices: Sequence[int]) -> dict[str, str]:
    """Of a run's process: this package, and devices of its own where several may go at a time."""
    found = launch.package_environment()
    found.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    if ladder.command or run.config.train.platform == "cpu" or run.devices == ladder.gpus:
        return found
    for name in VISIBLE:
        listed = [text for text in os.environ.get(name, "").split(",") if text]
        chosen = [listed[number] if number < len(listed) else str(number) for number in devices]
        found[name] = ",".join(chosen)
    return found


def _last_line(path: Path) -> str:
    """The last line that tells something: an error's, else any."""
    try:
        text = path.read_bytes()[-(1 << 14) :].decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines[-40:] if line.startswith("error")]
    return (errors or lines or [""])[-1][:300]


def _after(text: str) -> str:
    return f" ({text})" if text else ""
