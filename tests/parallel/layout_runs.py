"""Training in several layouts by a worker as `next_block_worker.py`: a checkpoint of one, from which others go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .launch import torchrun


def run_layouts(
    folder: Path,
    worker: str,
    options: Sequence[str],
    layouts: dict[int, dict[str, str]],
    saved: str,
    resumed: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Layout -> what the worker found; those of ``resumed`` have the last steps only.

    layouts: processes -> name -> options of [parallel]; saved: the layout that leaves a checkpoint; resumed: name ->
    layout of what goes on from it.
    """
    checkpoint, found = str(folder / "saved"), dict[str, dict[str, Any]]()
    for processes, named in layouts.items():
        asked = {name: (layout, name == saved, False) for name, layout in named.items()}
        asked |= {name: (named[layout], False, True) for name, layout in resumed.items() if layout in named}
        cases = {
            name: {
                "options": [*options, *(f"parallel.{option}" for option in layout.split())],
                "save": checkpoint if save else None,
                "load": checkpoint if load else None,
            }
            for name, (layout, save, load) in asked.items()
        }
        (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        torchrun(processes, worker, str(folder / "cases.json"), str(folder / "found.json"))
        found |= json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found
