"""A process that has imported the trainer and forks one child per Python command: what a test launches starts in
hundredths of a second.

`python -m tests.forkserver SOCKET` serves `tests/parallel/launch.py`; see there for when a command is started afresh
instead.  Every connection is one job: a request with the command, its folder, its environment and two file descriptors
(stdout, stderr) goes in; its process id comes back at once, and its exit status and processor seconds when it has
ended.  A job whose client hangs up is ended.

What a job finds is what a fresh interpreter would show it, but for the modules that are imported already, one seed of
hashes for all ranks, and an end that does not take modules apart.  `torch.distributed.run` is torchrun itself; only the
ranks it starts are forked (`tests/forked_launcher.py`), and so are the first processes that a job starts
(`tests/forked_spawn.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from dataclasses import dataclass, field

from tests import forked_launcher, forked_spawn

LINGER = 30.0
"""Seconds without any connection after which the server ends."""

PRELOADED = (
    "megatron.core",
    "megatron_videogpt.train.trainer",
    "megatron_videogpt.sample.cli",
    "megatron_videogpt.convert.export",
    "megatron_videogpt.convert.ingest",
    "megatron_videogpt.data.prepare.encode",
    "megatron_videogpt.config.check",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "diffusers.models.autoencoders.autoencoder_kl",
    "torch.utils.tensorboard",
    "torch.distributed.run",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
)
FORKED_IN = dict(os.environ)
"""The environment in which the libraries were imported."""


@dataclass(frozen=True)
class Job:
    """A Python command.  argv: what follows the interpreter's name, its own options included; output: descriptors of
    stdout and stderr.
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    output: list[int] = field(default_factory=list)


def preload() -> None:
    """Import everything that a job may need, with nothing started that does not survive a fork."""
    from megatron_videogpt.platforms import activate

    # Before megatron-core, which looks for its device as it is imported.
    activate("cpu")
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(
            f"{threads} threads after the imports: a child would miss all but one, with their locks held"
        )
    gc.collect()
    # Nothing of this is garbage: a child's collector need not touch, and so copy, those pages.
    gc.freeze()


def serve(listener: socket.socket) -> Job | None:
    """Fork a child per request.  Returns the job in the child, so that it runs with nothing of the server beneath it,
    and None when the server ends.
    """
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
            connection = key.fileobj
            if connection is ear:
                ear.recv(4096)
                _report(running)
            elif connection is listener:
                connection, _ = listener.accept()
                idle.add(connection)
                selector.register(connection, selectors.EVENT_READ)
            elif isinstance(connection, socket.socket):
                job = _read(connection) if connection in idle else None
                if job is None:
                    # The client has hung up, before its job, in the middle of it or after its end.
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
                _tell(connection, pid=pid)


def _read(connection: socket.socket) -> Job | None:
    """A request: eight digits of length, then JSON; None at the end of the connection."""
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        if not head:
            return None
        text, length = b"", int(head)
        while len(text) < length:
            more = connection.recv(length - len(text))
            if not more:
                return None
            text += more
        return Job(**json.loads(text), output=list(descriptors))
    except OSError:
        return None


def _tell(connection: socket.socket, **facts: float) -> None:
    with contextlib.suppress(OSError):  # the client is gone
        connection.sendall(json.dumps(facts).encode() + b"\n")


def _report(running: dict[int, socket.socket]) -> None:
    """Tell the clients of the jobs that have ended."""
    for pid, connection in list(running.items()):
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            del running[pid]
            _tell(connection, code=os.waitstatus_to_exitcode(status), processor=usage.ru_utime + usage.ru_stime)


def become(job: Job) -> None:
    """Give this process, fresh from a fork, what a fresh interpreter would have."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, source in zip((1, 2), job.output):
        os.dup2(source, target)
        os.close(source)
    forked_spawn.enter(job.env, job.cwd)


def execute(argv: list[str]) -> None:
    """Run what follows `python` on a command line as the interpreter would: `-u`, then `-m MODULE`, `-c CODE` or a
    script's path, and arguments.
    """
    if argv[0] == "-u":
        forked_spawn.unbuffered()
        argv = argv[1:]
    if argv[:2] == ["-m", "torch.distributed.run"]:
        rank = forked_launcher.launch(argv[2:])
        if rank is None:
            return
        return execute(rank)
    spare = forked_spawn.keep_spares(FORKED_IN)
    if spare is not None:
        return execute(spare)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    # Processes that multiprocessing starts from here import the main module that they find here.
    sys.modules["__main__"] = main
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
    elif argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
        exec(compile(argv[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
        main.__dict__.update(__file__=argv[0], __spec__=None)
        with open(argv[0], "rb") as file:
            code = compile(file.read(), argv[0], "exec")
        exec(code, main.__dict__)


def start(path: str) -> Job | None:
    """The server's whole life; see `serve`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    # There for others only when a connection succeeds.
    os.rename(f"{path}.new", path)
    preload()
    job = serve(listener)
    if job is None:
        for suffix in ("", ".lock", ".log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)
    return job


def end(code: int) -> None:
    """Leave as the interpreter does, but for taking modules apart: each page of theirs would be copied for it, half a
    second in all.
    """
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
    # A job's main module is another one than the server's, so what runs is that of the package.
    from tests import forkserver

    if (current := forkserver.start(sys.argv[1])) is not None:
        forkserver.end(forkserver.run(current))
