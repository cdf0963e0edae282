"""Which checkpoints a run has, and which of them is meant: rank 0 decides, for all.

A run's folder holds ``checkpoints/step_00001000/``, complete ones only: a checkpoint is written as ``.partial`` and
renamed when all of it is on the disk, and a run resumes from the newest.  Beside the tensors (weights, optimizer,
average of the weights) each has `config.toml`, `state.json` (step, consumed samples, pending statistics, seed,
fingerprints of codec and data; `weights_only` where there is no optimizer) and `files.json`, by which all of them are
checked before anything is read (`whole.py`).
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
from ..errors import RunError, one_line, unusable
from ..platforms.together import from_rank_zero, raise_together
from .folders import complete_folders, read_state, set_aside, step_of
from .whole import CONFIG, GO_ON, STOP, TAKE, first_whole

LOOK_AGAIN = (0.0, 0.5, 1.0, 2.0, 3.0, 3.5)
"""Seconds between looks for a folder that rank 0 sees and this rank does not: NFS keeps attributes for some seconds."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint as rank 0 read it: its folder, what `state.json` holds, and the resolved configuration it
    was saved with.

    passed: damaged ones that it stands for (`checkpoint.on_damaged`).
    """

    path: Path
    state: dict[str, Any]
    config: Config
    passed: tuple[Path, ...] = ()

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path.parent.parent


def find_checkpoint(
    run: Path, step: int | None = None, group: Any = None, on_damaged: str = STOP, hint: str = TAKE
) -> Saved:
    """A run's checkpoint at `step`, or its newest: the one that rank 0 finds; a collective of all ranks (of `group`, if
    the default one is slow).

    on_damaged, hint: as of `whole.first_whole`.  Raises RunError in one line when there is none, when it is damaged,
    and where some ranks do not see it.
    """

    def choose() -> tuple[Path, tuple[Path, ...]]:
        if not run.is_dir():
            raise RunError(f"{run}: no such folder; expected the output folder of a training run")
        have = {step_of(path): path for path in complete_folders(run)}
        wanted = max(have, default=None) if step is None else step
        if wanted not in have:
            names = ", ".join(path.name for path in have.values()) or "none"
            raise RunError(
                f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; it has: {names}"
            )
        others = [have[other] for other in sorted(have, reverse=True) if other != wanted]
        return first_whole([have[wanted], *others], on_damaged, hint)

    found = _agreed(choose, group)
    assert found is not None
    return found


def newest_checkpoint(run: Path, group: Any = None, on_damaged: str = STOP) -> Saved | None:
    """A run's newest complete checkpoint to go on from, or None; as `find_checkpoint`."""

    def choose() -> tuple[Path, tuple[Path, ...]] | None:
        folders = complete_folders(run)[::-1]
        return first_whole(folders, on_damaged, GO_ON) if folders else None

    return _agreed(choose, group)


def set_passed_aside(saved: Saved, group: Any) -> None:
    """Rename the damaged checkpoints that a run does not go on from: the run comes to their steps again, and what
    counts may be replaced or dropped.  A collective; RunError.
    """

    def rename() -> None:
        for path in saved.passed:
            try:
                print(f"{path} is kept as {set_aside(path).name}", flush=True)
            except OSError as error:
                raise unusable(path, error) from error

    from_rank_zero(rename, group, "renaming damaged checkpoints")


def _agreed(choose: Callable[[], tuple[Path, tuple[Path, ...]] | None], group: Any) -> Saved | None:
    """What rank 0 chooses, once every rank sees all of its files; a collective."""

    def read() -> tuple[Saved, list[str]] | None:
        chosen = choose()
        return None if chosen is None else (_read(*chosen), os.listdir(chosen[0]))

    found = from_rank_zero(read, group, "looking for a checkpoint")
    if found is None:
        return None
    saved, files = found
    raise_together(_unseen(saved.path, files), group, "looking for a checkpoint")
    return saved


def _read(path: Path, passed: tuple[Path, ...]) -> Saved:
    try:
        return Saved(path, read_state(path), load_config(path / CONFIG), passed)
    except (OSError, ValueError) as error:
        # It is what was written: another release may have other options.
        raise RunError(f"{path}: this release cannot use it ({one_line(error)}); use the one that saved it") from error


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
