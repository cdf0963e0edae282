"""Which checkpoints a run has, and which of them is meant: rank 0 decides, for all.

A run's folder holds ``checkpoints/step_00001000/``, complete ones only: a checkpoint is written as ``.partial`` and
renamed when all of it is on the disk, and a run resumes from the newest.  Beside the tensors (weights, optimizer,
average of the weights) each has `config.toml` and `state.json` (step, consumed samples, pending statistics, seed,
fingerprints of codec and data; `weights_only` where there is no optimizer).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.load import load_config
from ..config.schema import Config
from ..errors import RunError
from ..platforms.together import from_rank_zero, raise_together
from .folders import complete_folders, newest_folder, read_state, step_of

LOOK_AGAIN = (0.0, 0.5, 1.0, 2.0, 3.0, 3.5)
"""Seconds between looks for a folder that rank 0 sees and this rank does not: NFS keeps attributes for some seconds."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint as rank 0 read it: its folder, what `state.json` holds, and the resolved configuration it
    was saved with.
    """

    path: Path
    state: dict[str, Any]
    config: Config

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path.parent.parent


def find_checkpoint(run: Path, step: int | None = None, group: Any = None) -> Saved:
    """A run's checkpoint at `step`, or its newest: the one that rank 0 finds; a collective of all ranks (of `group`, if
    the default one is slow).

    Raises RunError in one line when there is none, and where some ranks do not see it.
    """

    def choose() -> Path:
        if not run.is_dir():
            raise RunError(f"{run}: no such folder; expected the output folder of a training run")
        have = {step_of(path): path for path in complete_folders(run)}
        wanted = max(have, default=None) if step is None else step
        if wanted not in have:
            names = ", ".join(path.name for path in have.values()) or "none"
            raise RunError(
                f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; it has: {names}"
            )
        return have[wanted]

    found = _agreed(choose, group)
    assert found is not None
    return found


def newest_checkpoint(run: Path, group: Any = None) -> Saved | None:
    """A run's newest complete checkpoint, or None; as `find_checkpoint`."""
    return _agreed(lambda: newest_folder(run), group)


def _agreed(choose: Callable[[], Path | None], group: Any) -> Saved | None:
    """What rank 0 chooses, once every rank sees all of its files; a collective."""

    def read() -> tuple[Saved, list[str]] | None:
        path = choose()
        return None if path is None else (_read(path), os.listdir(path))

    found = from_rank_zero(read, group, "looking for a checkpoint")
    if found is None:
        return None
    saved, files = found
    raise_together(_unseen(saved.path, files), group, "looking for a checkpoint")
    return saved


def _read(path: Path) -> Saved:
    try:
        return Saved(path, read_state(path), load_config(path / "config.toml"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{path}: is damaged ({reason}); move that folder away to go on from the checkpoint before it"
        ) from error


def _unseen(path: Path, files: list[str]) -> str:
    """What is wrong where a folder does not come to hold `files` here: shared file systems keep old listings for a
    while.
    """
    gone = set(files)
    for pause in LOOK_AGAIN:
        time.sleep(pause)
        with contextlib.suppress(OSError):
            gone = set(files) - set(os.listdir(path))
        if not gone:
            return ""
    return (
        f"{path}: {len(gone)} of its {len(files)} files are not seen there; every node needs the same "
        "train.output and train.init_from"
    )
