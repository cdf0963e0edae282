"""The processes of a `workers.Pool` and the thread that serves them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, reduction
from typing import Any

from .. import launch
from .bad import BadVideo
from .reader import SLOTS, new_slot, read_slot, run_reader, write_slot

log = logging.getLogger(__name__)

STARTUP = 300.0  # seconds for a process to start and to import what it needs
PATIENCE = 2.0  # seconds in which a process may end by itself
ATTEMPTS = 3  # processes in a row that may fail to start


@dataclass(eq=False)
class _Worker:
    """A process.  slots: its shared files; tasks: (number, task, slot), the first one in work since `since`; ready:
    whether it has started.
    """

    process: Any
    pipe: Any
    slots: list[int]
    free: list[int] = field(default_factory=lambda: list(range(SLOTS)))
    tasks: deque[tuple[int, Any, int]] = field(default_factory=deque)
    since: float = 0.0
    ready: bool = False

    def end(self, patience: float) -> None:
        """Wait for the process, kill it when it does not end, and give back what it held."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()
        self.pipe.close()
        for memory in self.slots:
            os.close(memory)


class WorkerGroup:
    """The processes of a pool and the thread that serves them; knows nothing of the pool, which can so be forgotten."""

    def __init__(self, payload: bytes, timeout: float, label: Callable[[Any], str]) -> None:
        self.payload, self.timeout, self.label = payload, timeout, label
        launch.shorten_sockets()
        self.context = multiprocessing.get_context(
            "forkserver"
        )  # a fork of this process would inherit locks of communication and OpenMP threads
        if not os.access(sys.executable, os.X_OK):
            # A process that root started for another user may run an interpreter that it cannot find again.
            self.context.set_executable("/proc/self/exe")
        self.context.set_forkserver_preload(["megatron_videogpt.data.loader"])
        self.workers: list[_Worker] = []
        self.failed = 0
        self.changed = threading.Condition()
        # Of these, the condition guards every use.
        self.queue: deque[tuple[int, Any]] = deque()
        self.results: dict[int, tuple[bool, Any]] = {}
        self.failure: BaseException | None = None
        self.closing = False
        self.wake_receiver, self.wake_sender = self.context.Pipe(duplex=False)
        self.thread = threading.Thread(target=self.serve, name="reader pool", daemon=True)

    def submit(self, number: int, task: Any) -> None:
        """See `Pool.submit`."""
        with self.changed:
            self.queue.append((number, task))
            # A pipe full of calls would stop this thread, so there is one for all that came together.
            if len(self.queue) == 1 and not self.closing:
                self.wake_sender.send_bytes(b"!")

    def wait(self, number: int) -> Any:
        """See `Pool.wait`."""
        with self.changed:
            while number not in self.results:
                if self.failure is not None:
                    raise self.failure
                if self.closing:
                    raise RuntimeError(f"task {number}: the readers were closed")
                self.changed.wait()
            good, value = self.results.pop(number)
        if good:
            return value
        raise value

    def serve(self) -> None:
        """Deal tasks and collect results until the pool closes."""
        try:
            while not self.closing:
                self.assign_tasks()
                for ready in connection.wait(
                    [self.wake_receiver, *(worker.pipe for worker in self.workers)], self.next_deadline()
                ):
                    if ready is self.wake_receiver:
                        self.wake_receiver.recv_bytes()
                        continue
                    self.receive(next(worker for worker in self.workers if worker.pipe is ready))
                self.replace_stuck()
        except BaseException as error:  # noqa: BLE001
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def assign_tasks(self) -> None:
        """Give waiting tasks to the processes with the fewest."""
        while True:
            worker = min(
                (worker for worker in self.workers if worker.free), key=lambda worker: len(worker.tasks), default=None
            )
            with self.changed:
                if worker is None or not self.queue:
                    return
                number, task = self.queue.popleft()
            slot = worker.free[-1]
            try:
                write_slot(worker.slots[slot], task)
            except Exception as error:  # noqa: BLE001
                self.finish(number, False, error)
                continue
            worker.free.pop()
            if not worker.tasks and worker.ready:
                worker.since = time.monotonic()
            worker.tasks.append((number, task, slot))
            # A process that has died is noticed when its pipe is read.
            with contextlib.suppress(OSError):
                worker.pipe.send_bytes(bytes([slot]))

    def receive(self, worker: _Worker) -> None:
        """A process says that it has started or finished a task, or is no more."""
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self.replace(worker, "crashed")
            return
        worker.since = time.monotonic()
        if not worker.ready:
            if message:
                raise pickle.loads(message)  # noqa: S301
            worker.ready, self.failed = True, 0
            return
        number, _, slot = worker.tasks.popleft()
        self.finish(number, *read_slot(worker.slots[slot]))
        worker.free.append(slot)

    def finish(self, number: int, good: bool, value: Any) -> None:
        """Hand a result to whoever waits for it."""
        if not good and isinstance(value, tuple):
            value, where = value
            value.__cause__ = RuntimeError(f"in a reader process:\n{where}")
        with self.changed:
            self.results[number] = good, value
            self.changed.notify_all()

    def deadline(self, worker: _Worker) -> float:
        """When a process must have said something, by the monotonic clock."""
        if not worker.ready:
            return worker.since + STARTUP
        return worker.since + self.timeout if worker.tasks else float("inf")

    def next_deadline(self) -> float | None:
        """Seconds to wait at most; None without a limit."""
        first = min(self.deadline(worker) for worker in self.workers)
        return None if first == float("inf") else max(0.0, first - time.monotonic()) + 0.001

    def replace_stuck(self) -> None:
        """Kill and replace the processes whose time is over."""
        now = time.monotonic()
        for worker in [worker for worker in self.workers if self.deadline(worker) < now]:
            # Its answer may have come while others were served.
            if not worker.pipe.poll():
                self.replace(worker, "stalled")

    def replace(self, worker: _Worker, kind: str) -> None:
        """A process that is stuck or dead loses the task in work; the one after it goes to another process."""
        seconds = time.monotonic() - worker.since
        if kind == "stalled":
            worker.process.kill()
        worker.process.join(PATIENCE)
        pid, code = worker.process.pid, worker.process.exitcode
        end = (
            f"did not finish in {seconds:.0f} s"
            if kind == "stalled"
            else f"ended with {f'signal {-code}' if code and code < 0 else f'exit code {code}'}"
        )
        if not worker.ready:
            self.failed += 1
            if self.failed >= ATTEMPTS:
                raise RuntimeError(f"reader processes do not start: the last one {end}")
        elif worker.tasks:
            number, task, _ = worker.tasks.popleft()
            name = self.label(task)
            log.warning("the reader of %s (process %d) %s: replaced", name, pid, end)
            self.finish(number, False, BadVideo(name, f"its reader {end}", kind))
        with self.changed:
            self.queue.extendleft((number, task) for number, task, _ in reversed(worker.tasks))
        self.workers.remove(worker)
        worker.end(0)
        self.workers.append(self.start_worker())

    def start_worker(self) -> _Worker:
        """Start a process; it says when it is ready."""
        slots = [new_slot() for _ in range(SLOTS)]
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=run_reader, args=(theirs, self.payload), daemon=True)
        process.start()
        theirs.close()
        # One that died at once is noticed when its pipe is read.
        with contextlib.suppress(OSError):
            for slot in slots:
                reduction.send_handle(ours, slot, process.pid)
        return _Worker(process, ours, slots, since=time.monotonic())

    def close(self) -> None:
        """End everything; may be called from any thread, and when the program ends."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.wake_sender.send_bytes(b"!")
        if threading.current_thread() is not self.thread:
            self.thread.join()
        for worker in self.workers:
            worker.pipe.close()
        limit = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.end(max(0.0, limit - time.monotonic()))
        self.workers.clear()
        self.wake_receiver.close()
        self.wake_sender.close()
