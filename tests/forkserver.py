"""A process that has imported the trainer and forks one child per Python command: what a test launches starts in hundredths of a second.

`python -m tests.forkserver SOCKET` serves `tests/parallel/launch.py`; see there for when a command is started afresh instead.  Every connection is one
job: a request with the command, its folder, its environment and two file descriptors (stdout, stderr) goes in; its process id comes back at once, and its
exit status and processor seconds when it has ended.  A job whose client hangs up is ended.

What a job finds is what a fresh interpreter would show it, but for the modules that are imported already, and one seed of hashes for all ranks.
`torch.distributed.run` is torchrun itself; only the ranks it starts are forked (`tests/forked_launcher.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from dataclasses import dataclass, field
from typing import Any

from tests import forked_launcher, forked_spawn

LINGER = 30.0
"""Seconds without any connection after which the server ends."""

PRELOADED = (
    "megatron.core",
    "megatron_videogpt.train.trainer",
    "megatron_videogpt.sample.cli",
    "megatron_videogpt.convert.export",
    "megatron_videogpt.convert.ingest",
    "megatron_videogpt.data.encode",
    "megatron_videogpt.config.check",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "torch.distributed.run",
    "tests.forked_launcher",
)


@dataclass(frozen=True)
class Job:
    """A Python command.  argv: what follows the interpreter's name, its own options included; output: descriptors of stdout and stderr."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    output: list[int] = field(default_factory=list)


def preload() -> None:
    """Import everything that a job may need, with nothing started that does not survive a fork."""
    import importlib

    from megatron_videogpt.platforms import activate

    # Before megatron-core, which looks for its device as it is imported.
    activate("cpu")
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads after the imports: a child would miss all but one, with their locks held")
    gc.collect()
    # Nothing of this is garbage: a child's collector need not touch, and so copy, those pages.
    gc.freeze()


def serve(listener: socket.socket) -> Job | None:
    """Fork a child per request.  Returns the job in the child, so that it runs with nothing of the server beneath it, and None when the server ends."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    ear, bell = socket.socketpair()
    for end in (ear, bell):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    selector.register(ear, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    idle: set[socket.socket] = set()
    while True:
        events = selector.select(None if idle or running else LINGER)
        if not events:
            return None
        for key, _ in events:
            if key.fileobj is listener:
                connection, _ = listener.accept()
                idle.add(connection)
                selector.register(connection, selectors.EVENT_READ)
            elif key.fileobj is ear:
                ear.recv(4096)
                _report(running)
            elif isinstance(connection := key.fileobj, socket.socket):
                job = _read(connection) if connection in idle else None
                if job is None:
                    # The client has hung up, before its job or in the middle of it.
                    selector.unregister(connection)
                    idle.discard(connection)
                    for pid in [pid for pid, other in running.items() if other is connection]:
                        os.kill(pid, signal.SIGTERM)
                    connection.close()
                    continue
                idle.remove(connection)
                pid = os.fork()
                if pid == 0:
                    # Whoever waits for the end of one of these must not wait for this process as well.
                    signal.set_wakeup_fd(-1)
                    selector.close()
                    for end in (listener, ear, bell, *idle, *running.values(), connection):
                        end.close()
                    return job
                for descriptor in job.output:
                    os.close(descriptor)
                running[pid] = connection
                connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def _read(connection: socket.socket) -> Job | None:
    """A request: eight digits of length, then JSON; None at the end of the connection."""
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        if not head:
            return None
        text, length = b"", int(head)
        while len(text) < length:
            text += connection.recv(length - len(text))
        return Job(**json.loads(text), output=list(descriptors))
    except OSError:
        return None


def _report(running: dict[int, socket.socket]) -> None:
    """Tell the clients of the jobs that have ended."""
    for pid, connection in list(running.items()):
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if not done:
            continue
        del running[pid]
        said = {"code": os.waitstatus_to_exitcode(status), "processor": usage.ru_utime + usage.ru_stime}
        try:
            connection.sendall(json.dumps(said).encode() + b"\n")
        except OSError:  # the client is gone
            pass


def become(job: Job) -> None:
    """Give this process, fresh from a fork, what a fresh interpreter would have."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, source in zip((1, 2), job.output):
        os.dup2(source, target)
        os.close(source)
    enter(job.env, job.cwd)


def enter(env: dict[str, str], cwd: str) -> None:
    """Environment, folder and random states of a new process."""
    os.chdir(cwd)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(env)
    added = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # The first entry is that of `-m`: the folder in which the server was started.
    sys.path[:] = added + [entry for entry in sys.path[1:] if entry not in before]
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if env.get("PYTHONUNBUFFERED"):
        unbuffered()


def unbuffered() -> None:
    """As `python -u`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]


def execute(argv: list[str]) -> None:
    """Run what follows `python` on a command line as the interpreter would: `-u`, then `-m MODULE`, `-c CODE` or a script's path, and arguments."""
    if argv[0] == "-u":
        unbuffered()
        argv = argv[1:]
    argv = forked_spawn.keep_spares() or argv
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    # Processes that multiprocessing starts from here import the main module that they find here.
    KEPT.append(sys.modules["__main__"])
    sys.modules["__main__"] = main
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
        return
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
        exec(compile(argv[1], "<string>", "exec"), main.__dict__)
        return
    path = argv[0]
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    main.__dict__.update(__file__=path, __spec__=None)
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, main.__dict__)


KEPT: list[Any] = []
"""The server's own main module, whose functions a job still runs."""


def start(path: str) -> Job | None:
    """The server's whole life; see `serve`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    preload()
    job = serve(listener)
    if job is None:
        os.unlink(path)
    return job


def end(code: int) -> None:
    """Leave as the interpreter does, but for taking modules apart: each page of theirs would be copied for it, half a second in all."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(job: Job) -> int:
    """The job; returns the exit code that the interpreter would give, after what it would print."""
    try:
        become(job)
        if job.argv[:2] == ["-m", "torch.distributed.run"]:
            forked_launcher.launch(job.argv[2:])
        else:
            execute(job.argv)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


if __name__ == "__main__":
    if (current := start(sys.argv[1])) is not None:
        # A job's main module is another one than the server's, so it calls those of the package.
        from tests import forkserver

        forkserver.end(forkserver.run(current))
