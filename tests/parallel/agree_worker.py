"""Two ranks of which one sees, or suffers, something else: under torchrun `agree_worker.py FOLDER` leaves what each
came to in ``rank_<n>.json``.

Nothing here waits for another rank in vain: a collective that only one of them enters would hang (the launch has a time
limit).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from tests.layouts import worker
from tests.layouts.cases import CHANNELS, case, sample_of

FOUND: dict[str, Any] = {}


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value inside."""
    own = name in vars(owner)
    real = vars(owner)[name] if own else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real) if own else delattr(owner, name)


def outcome(name: str, action: Callable[[], Any]) -> None:
    """Keep what an action gave or raised."""
    try:
        FOUND[name] = str(action())
    except Exception as error:  # noqa: BLE001  (looked at by the test)
        FOUND[name] = f"{type(error).__name__}: {error}"


def full(*arguments: Any, **options: Any) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def endless_writer(queue: Any, told: Path) -> Iterator[None]:
    """Inside, the process that megatron-core's background process forks to write a file never ends; `told` has its id
    once the save is on its way.
    """
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    real = queue.schedule_async_request

    def write(*arguments: Any, **options: Any) -> None:
        partial = told.with_suffix(".partial")
        partial.write_text(str(os.getpid()))
        partial.rename(told)
        time.sleep(10_000)

    def schedule(*arguments: Any) -> None:
        real(*arguments)
        until(told.exists)

    with (
        patched(FileSystemWriterAsync, "write_preloaded_data", staticmethod(write)),
        patched(queue, "schedule_async_request", schedule),
    ):
        yield


def gone(told: Path) -> bool:
    """Whether the process whose id stands there ends.  In megatron-core 0.19 the writer is a thread of the background
    process, this rank's child, of which something is left until somebody asks for its exit code.
    """

    def ended() -> bool:
        try:
            return psutil.Process(int(told.read_text())).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return until(ended)


def until(true: Callable[[], bool]) -> bool:
    """Wait for it, a minute at most."""
    for _ in range(600):
        if true():
            return True
        time.sleep(0.1)
    return False


def look(run: Path, rank: int) -> None:
    """Listings that differ between the ranks."""
    from megatron_videogpt.checkpoint import folders
    from megatron_videogpt.checkpoint import saved as saved_module
    from megatron_videogpt.checkpoint.saved import find_checkpoint, newest_checkpoint

    real, root = os.listdir, folders.checkpoint_root(run)
    first, second = root / folders.checkpoint_name(1), find_checkpoint(run).path

    def stale(path: Any) -> list[str]:
        return [name for name in real(path) if name != second.name]

    def found(**options: Any) -> str:
        return find_checkpoint(run, **options).path.name

    with patched(os, "listdir", stale) if rank == 1 else contextlib.nullcontext():
        outcome("stale", lambda: newest_checkpoint(run).path.name)
        outcome("stale find", found)
    late = iter(range(100))

    def appears(path: Any) -> list[str]:
        if Path(path) == second and next(late) < 2:
            raise FileNotFoundError(path)
        return real(path)

    def never(path: Any) -> list[str]:
        if Path(path) == second:
            raise FileNotFoundError(path)
        return real(path)

    with patched(saved_module, "LOOK_AGAIN", (0.0, 0.01, 0.01)):
        with patched(os, "listdir", appears) if rank == 1 else contextlib.nullcontext():
            outcome("late", found)
        with patched(os, "listdir", never) if rank == 1 else contextlib.nullcontext():
            outcome("unseen", found)
            outcome("unseen newest", lambda: newest_checkpoint(run))
            outcome("seen", lambda: found(step=1))
    outcome("no such step", lambda: found(step=7))
    outcome("no such run", lambda: find_checkpoint(run / "gone"))
    outcome("new run", lambda: newest_checkpoint(run / "gone"))
    if rank == 1:
        # What only rank 0 reads may be unreadable elsewhere.
        with patched(Path, "read_text", full):
            outcome("read by rank 0", found)
    else:
        outcome("read by rank 0", found)
    broken = folders.checkpoint_root(run.parent / "broken") / first.name
    if rank == 0:
        shutil.copytree(first, broken)
        (broken / "state.json").write_text('{"step": 1')
    outcome("damaged", lambda: newest_checkpoint(run.parent / "broken"))


def save(session: Any, run: Path, rank: int) -> None:
    """Saves during which one rank alone fails."""
    import torch

    from megatron_videogpt.checkpoint import save as saver
    from megatron_videogpt.checkpoint.load import load_weights
    from megatron_videogpt.checkpoint.saved import find_checkpoint, newest_checkpoint
    from megatron_videogpt.platforms import compat_saving
    from megatron_videogpt.train.run import State

    settings = replace(session.config.checkpoint, async_save=True, keep=0, retries=0)
    config = replace(session.config, checkpoint=settings, train=replace(session.config.train, output=str(run)))
    bare = [chunk.module for chunk in session.chunks]
    writer = saver.Saver(config, bare, session.optimizer, None, "codec")
    step = iter(range(1, 100))

    def attempt(must: bool) -> str:
        state = State(step=next(step))
        path = writer.save(asdict(state), must=must)
        failed = writer.finish()
        return f"{'failed' if failed else path and path.name}, newest {newest_checkpoint(run).path.name}"

    outcome("foreground", lambda: attempt(True))
    outcome("background", lambda: attempt(False))
    for owner, name in list(compat_saving._rank_zero_writers()):
        for must in (True, False):
            with patched(owner, name, full) if rank == 0 else contextlib.nullcontext():
                outcome(f"{name} {'now' if must else 'later'}", lambda must=must: attempt(must))
    real = compat_saving.plan_save

    def fatal(*arguments: Any) -> Any:
        return real(*arguments)._replace(async_fn=lambda *rest: os._exit(9))

    def failing(*arguments: Any) -> Any:
        return real(*arguments)._replace(async_fn=full)

    for number in range(2):
        inject = number == rank
        with patched(compat_saving, "plan_save", fatal) if inject else contextlib.nullcontext():
            outcome(f"killed writer on {number}", lambda: attempt(False))
        with patched(compat_saving, "plan_save", failing) if inject else contextlib.nullcontext():
            outcome(f"failing writer on {number}", lambda: attempt(True))
        left = run.parent / f"writer_of_{1 - number}"
        with patched(writer.queue, "schedule_async_request", full) if inject else endless_writer(writer.queue, left):
            outcome(f"no process on {number}", lambda: attempt(False))
        FOUND[f"writer gone on {1 - number}"] = inject or gone(left)
    for name, owner in (("publish", saver), ("config_to_toml", saver), ("remove_leftovers", saver)):
        with patched(owner, name, full) if rank == 0 else contextlib.nullcontext():
            outcome(name, lambda: attempt(True))
    with (
        patched(saver, "publish", full),
        patched(shutil, "disk_usage", full) if rank == 0 else contextlib.nullcontext(),
    ):
        outcome("disk_usage", lambda: attempt(True))
    outcome("afterwards now", lambda: attempt(True))
    outcome("afterwards later", lambda: attempt(False))
    with torch.no_grad():
        held = [parameter.clone() for parameter in session.chunks[0].parameters()]
        for parameter in session.chunks[0].parameters():
            parameter.zero_()
        load_weights(find_checkpoint(run).path, bare)
    FOUND["loaded"] = all(torch.equal(a, b) for a, b in zip(held, session.chunks[0].parameters(), strict=True))
    with (
        patched(compat_saving, "background_obstacle", lambda: "no such strategy")
        if rank == 1
        else contextlib.nullcontext()
    ):
        outcome("obstacle", lambda: saver.Saver(config, bare, session.optimizer, None, "codec"))


def main() -> None:
    """Entry point under torchrun."""
    from types import SimpleNamespace

    worker.platform()
    import torch

    from megatron_videogpt.checkpoint import save as saver
    from megatron_videogpt.checkpoint.checks import check_same_codec
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.codec.base import Identity
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.config.schema import Config
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train import run

    saver.RETRY_SECONDS = 0.0
    # Both ranks have tensors to write.
    session = worker.start(config_from_dict(parse_overrides(list(case("TP2+SP").all_options))), CHANNELS)
    worker.step(session, [sample_of(0, n, session.config.condition) for n in range(2)])
    rank, folder = torch.distributed.get_rank(), Path(sys.argv[1])
    save(session, folder / "run", rank)
    look(folder / "run", rank)
    group = world.control_group(1)
    outcome(
        "another codec", lambda: run._check_same_codec(Config(), SimpleNamespace(fingerprint=f"codec{rank}"), group)
    )  # type: ignore[arg-type]
    identity = Identity(("codec", "other")[rank])
    saved = find_checkpoint(folder / "run")
    mine = SimpleNamespace(name="tiny", fingerprint=identity.fingerprint, identity=identity)
    outcome("trained with another codec", lambda: check_same_codec(saved, mine, group))  # type: ignore[arg-type]
    (folder / f"rank_{rank}.json").write_text(json.dumps(FOUND))
    world.stop()


if __name__ == "__main__":
    main()
