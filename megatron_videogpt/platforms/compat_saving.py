"""What differs between releases of megatron-core where checkpoints are written, or goes wrong there: tested with 0.16.1
to 0.19.2.

A save is taken apart here: planned by all ranks together, written by each for itself (now, or by a process in the
background), and finished by all, one agreed step after another.  megatron-core's own save in one call raises on rank 0
alone when a file that only rank 0 writes does not fit on the disk, while the other ranks wait for it in a collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import logging
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

STRATEGY = "mcore"
"""From 0.17 on the default is "nvrx", which needs the package nvidia-resiliency-ext."""


def _of_interest(record: logging.LogRecord) -> bool:
    return "async save is deprecated" not in record.getMessage()


def background_obstacle() -> str:
    """Why this release cannot write a checkpoint in the background, or nothing."""
    from megatron.core import dist_checkpointing

    try:
        from megatron.core.dist_checkpointing.strategies import torch as strategies
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue  # noqa: F401
    except ImportError as error:
        return str(error)
    options = inspect.signature(dist_checkpointing.save).parameters
    if "async_sharded_save" not in options:
        return "dist_checkpointing.save has no async_sharded_save"
    choose = getattr(strategies, "get_async_strategy", None)
    if "async_strategy" in options and choose is not None:
        try:
            choose(STRATEGY)
        except (ImportError, TypeError, ValueError) as error:
            return str(error)
    return ""


def background_calls() -> Any:
    """A queue of background saves: `schedule_async_request`, `maybe_finalize_async_calls`."""
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    return AsyncCallsQueue()


def plan_save(contents: dict[str, Any], folder: str) -> Any:
    """Plan a checkpoint of `contents` in an existing folder; a collective.

    Returns what `write` (or a queue of background calls) and then the request's `finalize_fns` do, or None where this
    release can only save all at once and has done so.
    """
    from megatron.core import dist_checkpointing

    if background_obstacle():
        return dist_checkpointing.save(contents, folder)
    # From 0.17 on it warns of our choice of strategy, which is no user's to change.
    logging.getLogger("megatron.core.dist_checkpointing.strategies.torch").addFilter(_of_interest)
    known = inspect.signature(dist_checkpointing.save).parameters
    chosen = {"async_strategy": STRATEGY} if "async_strategy" in known else {}
    return dist_checkpointing.save(contents, folder, async_sharded_save=True, **chosen)


def write(request: Any) -> None:
    """Write this rank's files of a planned checkpoint, in this process."""
    if request.async_fn is None:
        return
    arguments = list(request.async_fn_args)
    if request.preload_fn is not None:
        arguments[1] = request.preload_fn()
    request.async_fn(*arguments, **(request.async_fn_kwargs or {}))


def tied(request: Any) -> Any:
    """A planned checkpoint for a background process that ends with the process that started it, and so do the writers
    that it forks in turn (on Linux).

    megatron-core's writers wait for ever for an answer of the background process when that was killed, by `abandon` or
    by a system out of memory: they would outlive the run and hold its output open, so that neither torchrun's caller
    nor a Slurm step ends.
    """
    if request.async_fn is None:
        return request
    return request._replace(async_fn=functools.partial(_tied, os.getpid(), request.async_fn))


def _tied(parent: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    _end_with(parent)
    os.register_at_fork(after_in_child=functools.partial(_end_with, os.getpid()))
    return work(*arguments, **options)


def _end_with(parent: int) -> None:
    """End this process when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def abandon(request: Any, calls: Any = None) -> None:
    """Forget a planned checkpoint that will not be finished: end its background process, and drop the answer that the
    next one would take for its own.
    """
    for call in list(calls.async_calls) if calls is not None else ():
        call.async_caller.close(abort=True)
    for answers in (value for value in request.async_fn_args if hasattr(value, "get_nowait")):
        with contextlib.suppress(queue.Empty, OSError, EOFError):
            while True:
                answers.get_nowait()


def _rank_zero_writers() -> Iterator[tuple[Any, str]]:
    """Where megatron-core writes what only rank 0 writes: the part that is no tensor, the metadata, the format."""
    from megatron.core.dist_checkpointing import serialization
    from megatron.core.dist_checkpointing.strategies import common, filesystem_async

    yield filesystem_async.FileSystemWriterAsync, "finish"
    for owner, name in ((serialization, "save_config"), (serialization, "save_common")):
        if hasattr(owner, name):
            yield owner, name
    if hasattr(common, "TorchCommonSaveStrategy"):
        yield common.TorchCommonSaveStrategy, "save_common"


@contextlib.contextmanager
def held_errors() -> Iterator[list[Exception]]:
    """Inside, what goes wrong where only rank 0 writes is put into the list instead of being raised: rank 0 stays in
    step with the others' collectives.
    """
    held: list[Exception] = []

    def holding(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def attempt(*arguments: Any, **options: Any) -> Any:
            try:
                return real(*arguments, **options)
            except Exception as error:  # noqa: BLE001  (whoever asked for the list reports it)
                held.append(error)

        return attempt

    with contextlib.ExitStack() as undo:
        for owner, name in _rank_zero_writers():
            undo.callback(_restorer(owner, name))
            setattr(owner, name, holding(getattr(owner, name)))
        yield held


def _restorer(owner: Any, name: str) -> Callable[[], None]:
    """What puts an attribute back as it is now: its own, or inherited."""
    if name in vars(owner):
        return functools.partial(setattr, owner, name, vars(owner)[name])
    return functools.partial(delattr, owner, name)
