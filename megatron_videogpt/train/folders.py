"""Which checkpoints a run has.  Imports neither torch nor megatron-core: launch scripts ask before a device is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def checkpoint_root(run: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step_{step:08d}"


def complete(run: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    folders = (path for path in checkpoint_root(run).glob("step_*") if not path.name.endswith(".partial"))
    return sorted(path for path in folders if (path / "state.json").is_file())


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(complete(run)), None)


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))
