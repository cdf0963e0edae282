"""Whether a checkpoint is what was written, and which of a run's are.  Imports neither torch nor megatron-core: launch
scripts ask too.

`files.json` of a checkpoint has the length and the SHA-256 of every other file; of the ends only where a file holds
tensors, since every checkpoint would be read twice otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.load import load_config
from ..errors import RunError, one_line
from .folders import RECORD, STATE, complete_folders, read_state, step_of

log = logging.getLogger(__name__)

TENSORS, END = ".distcp", 4096
"""Files of tensors, and how many bytes of each end are hashed."""

CONFIG = "config.toml"

ALWAYS = (STATE, CONFIG, ".metadata", "metadata.json")
"""Files that a checkpoint of an earlier release, which has no record, cannot be without."""

STOP = "stop"
GO_ON = "checkpoint.on_damaged=previous goes on from it"
TAKE = "--step {step} takes it"


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Complete a checkpoint: the record of its files, then its state, with which it counts.  OSError."""
    text = json.dumps(state).encode()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (RECORD, STATE))
    files = {path.relative_to(folder).as_posix(): _facts(path) for path in paths}
    files[STATE] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / RECORD).write_text(json.dumps(files, indent=1), encoding="utf-8")
    (folder / STATE).write_bytes(text)


def _facts(path: Path) -> dict[str, Any]:
    # Opened first: network file systems look up the length of a file anew only then.
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix != TENSORS:
            return {"bytes": size, "sha256": hashlib.sha256(file.read()).hexdigest()}
        ends = hashlib.sha256(file.read(END))
        file.seek(max(END, size - END))
        ends.update(file.read())
        return {"bytes": size, "sha256_of_ends": ends.hexdigest()}


def damage(folder: Path) -> str:
    """Why a checkpoint is not what was written, in words, or ""; of one of an earlier release, as far as that shows."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return _damage_without_record(folder)
    except (OSError, ValueError) as error:
        return f"{RECORD} cannot be read: {_reason(error)}"
    if not isinstance(record, dict) or STATE not in record:
        return f"{RECORD} is no record of files"
    return next(filter(None, (_difference(folder, name, facts) for name, facts in record.items())), "")


def _difference(folder: Path, name: str, expected: Any) -> str:
    try:
        found = _facts(folder / name)
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError) as error:
        return f"{name} cannot be read: {_reason(error)}"
    if found == expected:
        return ""
    length = expected.get("bytes") if isinstance(expected, dict) else None
    # Whoever moved a codec may have edited it.
    hint = f"; if it was edited on purpose, remove {RECORD}" if name == CONFIG and found["bytes"] else ""
    if isinstance(length, int) and found["bytes"] != length:
        return f"{name} has {found['bytes']:,} bytes, expected {length:,}{hint}"
    return f"{name} is not what was written: its SHA-256 is another{hint}"


def _damage_without_record(folder: Path) -> str:
    for name in (*ALWAYS, *sorted(path.name for path in folder.glob(f"*{TENSORS}")), "common.pt"):
        try:
            if not (folder / name).stat().st_size:
                return f"{name} is empty"
        except FileNotFoundError:
            if name in ALWAYS:
                return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {_reason(error)}"
    try:
        state = read_state(folder)
        if not isinstance(state, dict) or "step" not in state:
            return f"{STATE} is no state of a run"
    except (OSError, ValueError) as error:
        return f"{STATE} cannot be read: {_reason(error)}"
    try:
        load_config(folder / CONFIG)
    except (OSError, ValueError) as error:
        return f"{CONFIG} cannot be read: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or one_line(error)


def first_whole(folders: Sequence[Path], on_damaged: str, hint: str) -> tuple[Path, tuple[Path, ...]]:
    """Of checkpoints (at least one), the one that is meant before the others: the first; with `on_damaged` "previous"
    the first that is whole, with a warning.  And the damaged ones before it.

    RunError: it is damaged, and `on_damaged` is "stop", or none is whole.  hint: how to take the whole one, {step}.
    """
    damaged: dict[Path, str] = {}
    whole: list[Path] = []
    for path in folders:
        reason = damage(path)
        if not reason:
            whole = [path]
            break
        damaged[path] = reason
    if not damaged:
        return whole[0], ()
    first, *more = damaged
    names = [path.name for path in damaged]
    text = f"{first}: is damaged ({damaged[first]})"
    if more:
        text += f", and so {'is' if len(more) == 1 else 'are'} {', '.join(names[1:])}"
    text += f"; {told_whole(whole)}"
    if not whole:
        raise RunError(text)
    if on_damaged == STOP:
        raise RunError(f"{text}; {hint.format(step=step_of(whole[0]))}, or move {', '.join(names)} away")
    log.warning("%s; going on from that (checkpoint.on_damaged=%s)", text, on_damaged)
    return whole[0], (first, *more)


def told_whole(whole: Sequence[Path]) -> str:
    """Which the newest whole checkpoint of a run is, `whole` having that or nothing."""
    if whole:
        return f"the newest whole one is {whole[0].name}"
    return "no other one is whole: restore it from a copy, or train anew in another train.output"


def unreadable(path: Path, reason: str) -> str:
    """What to tell where reading a checkpoint failed that looked whole."""
    others = [other for other in reversed(complete_folders(path.parent.parent)) if other != path]
    whole = next((other for other in others if not damage(other)), None)
    text = f"{path}: cannot be read ({reason}); {told_whole([whole] if whole else [])}"
    return f"{text}; move {path.name} away to go on from it" if whole else text
