"""A run's folder of checkpoints, and how one takes its place in it.  Imports neither torch nor megatron-core: launch
scripts ask before a device is there.

Beside complete checkpoints, ``step_00001000``, there may be ones that are being written (``.partial``), that a newer
one of the same step is just replacing (``.replaced``: it counts until the newer one has its name) and that are being
removed (``.removed-1a2b3c4d``); damaged ones (``.damaged``) neither count nor are they ever removed.  A process may be
killed between any two calls to the system: what is complete under a name that counts is whole, and was on the disk
before it got that name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..config.schedules import kept_steps
from ..config.schema import Config

STATE, RECORD = "state.json", "files.json"
"""What is written last, and the record of all files, which is written before it (`whole.seal`)."""

PARTIAL, REPLACED, REMOVED, DAMAGED = ".partial", ".replaced", ".removed-", ".damaged"
_OURS = re.compile(r"step_(\d{8,})(\.partial|\.replaced|\.removed-[0-9a-f]{8})?")

NO_SUCH_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What file systems answer that cannot flush a folder by itself."""


def checkpoint_root(run: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step_{step:08d}"


def partial_of(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return path.with_name(path.name + PARTIAL)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    found = _OURS.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def _entries(run: Path) -> list[tuple[Path, str]]:
    """Folders beside each other under our own names, each with what is behind the step (nothing for one that is
    complete).
    """
    try:
        names = os.listdir(checkpoint_root(run))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(name, _OURS.fullmatch(name)) for name in names]
    return [(checkpoint_root(run) / name, match[2] or "") for name, match in found if match]


def _whole(path: Path) -> bool:
    """Whether everything of a checkpoint is there, or was (`whole.damage`): its state is written last."""
    return (path / STATE).is_file() or (path / RECORD).is_file()


def complete_folders(run: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    steps = sorted({step_of(path) for path, rest in _entries(run) if rest in ("", REPLACED)})
    finals = [checkpoint_root(run) / checkpoint_name(step) for step in steps]
    # One may be replaced between two looks: the second name has it while the first does not, and afterwards the first
    # again.
    places = [(final, final.with_name(final.name + REPLACED), final) for final in finals]
    return [path for path in (next(filter(_whole, three), None) for three in places) if path is not None]


def newest_folder(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(complete_folders(run)), None)


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def publish(partial: Path, final: Path) -> None:
    """Give a written checkpoint its name once all of it is on the disk, in place of an older one of that step if there
    is one.

    OSError: the older one still counts.
    """
    flush(partial)
    older = final.with_name(final.name + REPLACED)
    if _whole(final):
        remove(older)
        os.replace(final, older)
    else:
        set_aside(final)
    try:
        os.replace(partial, final)
    except OSError:
        if _whole(older):
            os.replace(older, final)
        raise
    for folder in (final.parent, final.parent.parent):
        _flush_folder(folder)
    remove(older)


def remove(path: Path) -> None:
    """Remove a checkpoint's folder, out of sight first: half of one must not pass for a checkpoint.  OSError where it
    cannot be renamed.
    """
    if os.path.lexists(path):
        hidden = path.with_name(f"{checkpoint_name(step_of(path))}{REMOVED}{os.urandom(4).hex()}")
        os.replace(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint, if it is there, a name under which it is nobody's; returns its place.  OSError."""
    name, number = checkpoint_name(step_of(path)) + DAMAGED, 1
    place = path.with_name(name)
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{name}-{number}")
    if os.path.lexists(path):
        os.replace(path, place)
        _flush_folder(path.parent)
    return place


def prune(run: Path, keep: int, keep_every: int, keep_steps: Collection[int] = ()) -> None:
    """Drop all but the newest `keep` checkpoints (0 keeps all), those of steps that are multiples of `keep_every` (0
    for none), those of `keep_steps` and those that a record names (`best_record`).
    """
    best = {
        record["step"] for record in map(read_best, checkpoint_root(run).glob(best_record(run, "*").name)) if record
    }
    for path in complete_folders(run)[:-keep] if keep else []:
        step = step_of(path)
        if not (keep_every and step % keep_every == 0) and step not in keep_steps and step not in best:
            remove(path)


def prune_by(config: Config, run: Path) -> None:
    """Drop what `[checkpoint]` of a run does not keep; those before and after each decay of its schedule stay."""
    options, kept = config.checkpoint, kept_steps(config.optimizer, config.train.steps)
    prune(run, options.keep, options.keep_every, kept)


def best_record(run: Path, number: str) -> Path:
    """The file, beside the checkpoints, that names the best one by a number (`callbacks.KeepBest`)."""
    return checkpoint_root(run) / f"best_{number.replace('/', '_')}.json"


def read_best(path: Path) -> dict[str, Any] | None:
    """What such a file holds, its step and its number among it; None where there is none, or nothing of that kind in
    it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds: dict[str, Any] = {"step": int, "value": (int, float)}
    fits = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if fits else None


def remove_leftovers(run: Path) -> None:
    """Remove what killed runs left under our own names, as far as that is possible; nothing may be being written."""
    for path, rest in _entries(run):
        with contextlib.suppress(OSError):
            if rest == REPLACED:
                _put_back(path)
            elif rest:
                shutil.rmtree(path, ignore_errors=True)


def _put_back(older: Path) -> None:
    """Finish or undo a replacement that was interrupted."""
    final = older.with_name(checkpoint_name(step_of(older)))
    if _whole(final) or not _whole(older):
        remove(older)
        return
    set_aside(final)
    os.replace(older, final)


def flush(folder: Path) -> None:
    """Wait until every file and folder in a folder is on the disk, and the folder itself."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush(os.path.join(root, name))
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in NO_SUCH_SYNC:
            raise


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
