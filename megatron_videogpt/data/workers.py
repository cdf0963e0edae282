"""Reader processes: tasks go out and results come back by number, and a process that is stuck or dies costs its one
task.

Tasks and results travel in files that live in memory (memfd) and are shared by file descriptor, two for each process:
neither the size of /dev/shm nor the buffer of a pipe limits them, and no process is held up by one that does not
listen.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from multiprocessing import util
from typing import Any

from ..signals import held
from .worker_group import WorkerGroup


class Pool:
    """Processes that run tasks.

    Args:
        run: task -> result, called in the processes; both are pickled, and arrays of the result are copied only.
        workers: processes; 0 runs each task here, when it is waited for, and then nothing can time out.
        timeout: seconds for a task, after which its process is named in the log, killed and replaced.
        label: task -> its name in messages.
        start: called once in every process, before its first task.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        workers: int,
        timeout: float,
        label: Callable[[Any], str] = str,
        start: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._here: dict[int, Any] | None = None if workers else {}
        if self._here is not None:
            self._end: Callable[[], Any] = self._here.clear
            if start is not None:
                start()
            return
        self._group = WorkerGroup(pickle.dumps((run, start), 5), timeout, label)
        with held():
            self._group.workers = [self._group.start_worker() for _ in range(workers)]
            self._group.thread.start()
            # multiprocessing's own finalizer, because it comes before multiprocessing joins its processes when the
            # program ends.
            self._end = util.Finalize(self, self._group.close, exitpriority=100)

    def submit(self, number: int, task: Any) -> None:
        """Have a task done; results are kept until somebody waits for them."""
        if self._here is not None:
            self._here[number] = task
        else:
            self._group.submit(number, task)

    def wait(self, number: int) -> Any:
        """The result of a submitted task, once.

        Raises:
            BadVideo: raised by the task, or of kind "stalled" or "crashed" when its process did not finish in time or
                died.
            Exception: whatever else the task raised; RuntimeError when processes cannot be started.
        """
        if self._here is not None:
            return self._run(self._here.pop(number))
        return self._group.wait(number)

    def close(self) -> None:
        """End the processes; those that do not listen are killed."""
        self._end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
