"""Python processes that a job of the fork server starts itself, forked in advance too, while the job has no threads.

megatron-core starts a manager for every run that saves ("spawn"), the data readers a fork server, some tools torchrun:
seconds of imports each.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import util
from typing import Any

SPARES = 3
HEAVY = ("from multiprocessing.spawn import spawn_main", "from multiprocessing.forkserver import main")
"""Beginnings of multiprocessing's programs that are worth a spare; its resource tracker imports little."""
ABOVE = 512
"""Descriptors from here on are out of the way of those that a program asks for by number."""
READ_AT_IMPORT = (
    "PYTHON",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "TORCH_",
    "TRITON_",
    "CUDA_",
    "LD_",
    "NVTE_",
    "MPL",
    "HF_",
)
"""Prefixes of variables that libraries read as they are imported."""
FREE = ("PYTHONPATH", "PYTHONUNBUFFERED", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_WAIT_POLICY")
"""Variables with such a prefix that a forked process takes over, or that mean nothing to one thread (torchrun and the
benchmarks set the last two).
"""


def obstacle(command: Sequence[Any], env: Mapping[str, str], imported_in: Mapping[str, str]) -> str:
    """Why no fork can be what a fresh interpreter would be, when libraries were imported in the environment
    `imported_in`; "" when one can.
    """
    words = [str(word) for word in command[:3] if word != "-u"]
    if sys.platform != "linux":
        return f"{sys.platform} is not Linux"
    if words[0] != sys.executable or len(words) < 2 or not (words[1] in ("-m", "-c") or words[1].endswith(".py")):
        return f"{' '.join(words)[:80]} is not `python [-u] -m | -c | FILE.py`"
    watched = {name for name in (*env, *imported_in) if name.startswith(READ_AT_IMPORT) and name not in FREE}
    differing = sorted(name for name in watched if env.get(name) != imported_in.get(name))
    return f"libraries read {', '.join(differing)} as they are imported" if differing else ""


class Spare:
    """A process that waits to be told what to run; it ends with this one."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid, self.line = pid, line

    def go(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        descriptors: Mapping[int, int],
        session: bool = False,
    ) -> int:
        """Run `python <argv>` there, with its descriptor `number` a copy of ours; returns its process id."""
        asked = {"argv": [*argv], "env": dict(env), "cwd": cwd, "numbers": [*descriptors], "session": session}
        asked["mask"] = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        text = json.dumps(asked).encode()
        socket.send_fds(self.line, [b"%08d" % len(text)], [*descriptors.values()])
        self.line.sendall(text)
        self.line.close()
        return self.pid


def keep_spares(imported_in: Mapping[str, str]) -> list[str] | None:
    """Fork spares for multiprocessing and subprocess to use; None in this process, in a spare what follows `python` on
    the command line it shall run.
    """
    spares: list[Spare] = []
    for _ in range(SPARES):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for end in (ours, *(spare.line for spare in spares)):
                end.close()
            return _wait(theirs)
        theirs.close()
        spares.append(Spare(pid, ours))
    _use_for_multiprocessing(spares)
    _use_for_subprocess(spares, imported_in)
    return None


def _use_for_multiprocessing(spares: list[Spare]) -> None:
    real = util.spawnv_passfds

    def spawn(path: Any, args: Any, passfds: Any) -> int:
        words = [os.fsdecode(word) for word in args]
        program = words[words.index("-c") :] if "-c" in words else ["", ""]
        if not spares or not program[1].startswith(HEAVY):
            return int(real(path, args, passfds))
        return spares.pop().go(program, os.environ, os.getcwd(), {int(number): int(number) for number in passfds})

    util.spawnv_passfds = spawn


def _use_for_subprocess(spares: list[Spare], imported_in: Mapping[str, str]) -> None:
    real = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def execute(
        self: Any, args: Any, executable: Any, preexec: Any, close: Any, passed: Any, cwd: Any, env: Any, *rest: Any
    ) -> None:
        _, _, shell, stdin, _, _, stdout, _, stderr, *more = rest
        env = os.environ if env is None else env
        plain = not (
            isinstance(args, (str, bytes)) or executable or preexec or passed or shell or stdin != -1
        ) and hasattr(self, "_close_pipe_fds")
        if not (plain and spares and not obstacle(args, env, imported_in)):
            real(self, args, executable, preexec, close, passed, cwd, env, *rest)
            return
        outputs = {1: 1 if stdout == -1 else stdout, 2: 2 if stderr == -1 else stderr}
        self.pid = spares.pop().go(
            [os.fspath(word) for word in args[1:]], env, os.fspath(cwd or os.getcwd()), outputs, session=bool(more[5])
        )
        self._child_created = True
        self._close_pipe_fds(*rest[3:9])

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]


def _wait(line: socket.socket) -> list[str]:
    """The command that this spare gets, with its descriptors where it expects them."""
    head, received, _, _ = socket.recv_fds(line, 8, 64)
    if not head:
        os._exit(0)
    text, length = b"", int(head)
    while len(text) < length:
        text += line.recv(length - len(text)) or os._exit(0)
    line.close()
    asked = json.loads(text)
    parked = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for number, descriptor in zip(asked["numbers"], parked):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["mask"])
    if asked["session"]:
        os.setsid()
    enter(asked["env"], asked["cwd"])
    argv: list[str] = asked["argv"]
    return argv


def enter(env: Mapping[str, str], cwd: str) -> None:
    """Environment, folder and random states of a new process."""
    import random

    os.chdir(cwd)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(env)
    added = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # The first entry is the program's own folder, or that in which it was started.
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
