"""torchrun in a child of the fork server: its agent, its rendezvous and its reports are torch's own, and the ranks are
forked.

They are forked before the agent starts, because it has threads, and wait until it wants them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from tests import forked_spawn


class Rank:
    """A forked process, with as much of `subprocess.Popen` as torch's agent uses."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe = pid, pipe
        self.returncode: int | None = None

    def go(self, argv: list[str], env: dict[str, str]) -> None:
        """Send the command that the process has waited for."""
        with os.fdopen(self.pipe, "w", encoding="utf-8") as pipe:
            json.dump([argv, env], pipe)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after `timeout` seconds."""
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired(f"rank (pid {self.pid})", timeout or 0.0)
            time.sleep(0.01)
        return code


def fork_ranks(count: int) -> list[Rank] | tuple[list[str], dict[str, str]]:
    """The ranks, in the launcher; in a rank, the command and environment that the launcher gave it.  A launcher that
    ends without them ends them.
    """
    ranks: list[Rank] = []
    for _ in range(count):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            # An end that stays open here would keep the other ranks waiting for a launcher that is gone.
            for descriptor in (write, *(rank.pipe for rank in ranks)):
                os.close(descriptor)
            os.setsid()
            with os.fdopen(read, encoding="utf-8") as pipe:
                text = pipe.read()
            if not text:
                os._exit(0)
            argv, env = json.loads(text)
            return argv, env
        os.close(read)
        ranks.append(Rank(pid, write))
    return ranks


def launch(arguments: list[str]) -> list[str] | None:
    """`python -m torch.distributed.run ARGUMENTS` in this process; in the ranks returns what follows `python` on the
    command line they shall run.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    sys.argv = [run.__file__, *arguments]
    options = run.parse_args(arguments)
    ranks = fork_ranks(run.determine_local_world_size(options.nproc_per_node) * (1 + options.max_restarts))
    if isinstance(ranks, tuple):
        (_, *argv), env = ranks
        forked_spawn.enter(env, os.getcwd())
        return argv
    waiting = iter(ranks)

    def popen(args: tuple[str, ...], env: dict[str, str], stdout: Any, stderr: Any, **session: bool) -> Rank:
        if stdout is not None or stderr is not None:
            raise NotImplementedError("a forked rank writes where its launcher writes: start this command cold")
        rank = next(waiting)
        rank.go(list(args), env)
        return rank

    subprocess_handler.Popen = popen
    # The same names for the log, without reading the source of every module that is loaded: a second for each launch.
    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name
    run.main(arguments)
    return None
