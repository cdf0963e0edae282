"""The other side of `workers.Pool`: the life of a reader process, and the files in memory through which tasks and
results travel.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import struct
import tempfile
import threading
import traceback
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch

from ..signals import STOP_SIGNALS

SLOTS = 2  # tasks that a process has: one in work, one waiting
KEPT = 1 << 28  # bytes that a slot keeps between results


def run_reader(pipe: Any, payload: bytes) -> None:
    """The life of a process."""
    for name in STOP_SIGNALS:
        # Signals are for the trainer, which saves first.
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    # There are as many processes as cores.
    torch.set_num_threads(1)
    slots = [reduction.recv_handle(pipe) for _ in range(SLOTS)]
    try:
        run, start = pickle.loads(payload)  # noqa: S301
        if start is not None:
            start()
    except Exception as error:  # noqa: BLE001
        pipe.send_bytes(pickle.dumps(_portable(error)[0]))
        return
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(b"")
        while True:
            slot = slots[(message := pipe.recv_bytes())[0]]
            try:
                write_slot(slot, (True, run(read_slot(slot))))
            except Exception as error:  # noqa: BLE001
                write_slot(slot, (False, _portable(error)))
            pipe.send_bytes(message)


def _end_with_trainer() -> None:
    """A killed trainer cannot stop its processes, and a task may not look at its pipe for long."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def _portable(error: Exception) -> tuple[Exception, str]:
    """An exception that survives pickling, and its traceback."""
    where = "".join(traceback.format_exception(error))
    try:
        return pickle.loads(pickle.dumps(error)), where  # noqa: S301
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}"), where


def new_slot() -> int:
    """A file descriptor of an empty file in memory (where the system has none, of a nameless one in the temporary
    folder).
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("megatron_videogpt")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_slot(memory: int, value: Any) -> None:
    """Write a value: sizes, pickle, then the bytes of its arrays."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, 5, buffer_callback=arrays.append)
    parts = [memoryview(head), *(array.raw() for array in arrays)]
    sizes = struct.pack(f"<{len(parts) + 1}Q", len(parts), *(len(part) for part in parts))
    place = 0
    for part in (memoryview(sizes), *parts):
        while part:
            done = os.pwrite(memory, part, place)
            part, place = part[done:], place + done


def read_slot(memory: int) -> Any:
    """The value that was written last."""
    (count,) = struct.unpack("<Q", _read(memory, 0, 8))
    sizes = struct.unpack(f"<{count}Q", _read(memory, 8, 8 * count))
    place, parts = 8 * (count + 1), []
    for size in sizes:
        parts.append(_read(memory, place, size))
        place += size
    if place > KEPT:
        os.truncate(memory, 0)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301


def _read(memory: int, place: int, size: int) -> memoryview:
    """Bytes of a file, writable."""
    view = np.empty(size, np.uint8).data
    done = 0
    while done < size:
        got = os.preadv(memory, [view[done:]], place + done)
        if not got:
            raise EOFError(f"a reader's result ends after {place + done} bytes")
        done += got
    return view
