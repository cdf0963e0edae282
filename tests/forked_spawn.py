"""Processes that multiprocessing starts afresh, out of a process of the fork server: forked in advance as well, while there are no threads.

megatron-core starts a manager for every save ("spawn"), and the data readers a fork server: three processor seconds of imports each.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from multiprocessing import util
from typing import Any

SPARES = 2
HEAVY = ("from multiprocessing.spawn import spawn_main", "from multiprocessing.forkserver import main")
"""Beginnings of the programs worth a spare; multiprocessing's resource tracker imports little."""
ABOVE = 512
"""Descriptors from here on are out of the way of those that a program asks for by number."""


class Spare:
    """A process that waits to be told what to run; it ends with this one."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid, self.line = pid, line


def keep_spares(count: int = SPARES) -> list[str] | None:
    """Fork spares, to be used by multiprocessing; None in this process, in a spare the command line (without the interpreter) it shall run."""
    spares: list[Spare] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for end in (ours, *(spare.line for spare in spares)):
                end.close()
            return _wait(theirs)
        theirs.close()
        spares.append(Spare(pid, ours))
    real = util.spawnv_passfds

    def spawn(path: Any, args: Any, passfds: Any) -> int:
        words = [word.decode() if isinstance(word, bytes) else word for word in args]
        program = words[words.index("-c") + 1] if "-c" in words else ""
        if not spares or not program.startswith(HEAVY):
            return int(real(path, args, passfds))
        spare, wanted = spares.pop(), sorted(map(int, passfds))
        text = json.dumps({"argv": words[words.index("-c") :], "env": dict(os.environ), "cwd": os.getcwd(), "wanted": wanted}).encode()
        socket.send_fds(spare.line, [b"%08d" % len(text)], wanted)
        spare.line.sendall(text)
        spare.line.close()
        return spare.pid

    util.spawnv_passfds = spawn
    return None


def _wait(line: socket.socket) -> list[str]:
    """The command that this spare gets, with its descriptors where it expects them."""
    head, received, _, _ = socket.recv_fds(line, 8, 64)
    if not head:
        os._exit(0)
    text, length = b"", int(head)
    while len(text) < length:
        text += line.recv(length - len(text))
    line.close()
    asked = json.loads(text)
    parked = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for number, descriptor in zip(asked["wanted"], parked):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    argv: list[str] = asked["argv"]
    sys.path[:] = [entry for entry in sys.path if entry]
    return argv
