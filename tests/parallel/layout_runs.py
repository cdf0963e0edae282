"""Training in several layouts by a worker as `next_block_worker.py`: checkpoints of some, from which others go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .launch import torchrun

SAVED = "TP2+SP"
"""The layout whose resumed run is compared bit for bit."""
RESUMED = {
    "resumed": (SAVED, SAVED),
    "in CP2": (SAVED, "CP2"),
    "back in TP2": ("CP2", "TP2"),
    "in one": (SAVED, "one"),
    "in four": ("one", "TP2 CP2"),
}
"""Layouts whose checkpoint goes on, and where; the last two in a later launch."""


def run_layouts(
    folder: Path,
    worker: str,
    options: Sequence[str],
    layouts: dict[int, dict[str, str]],
    resumed: dict[str, tuple[str, str]],
) -> dict[str, dict[str, Any]]:
    """Layout -> what the worker found; those of ``resumed`` have the last steps only.

    layouts: processes -> name -> options of [parallel], launch by launch; resumed: name -> (layout that leaves a
    checkpoint, layout that goes on from it, in the same launch or a later one).
    """
    found = dict[str, dict[str, Any]]()
    saved = {source: str(folder / source.replace(" ", "_")) for source, _ in resumed.values()}
    for processes, named in layouts.items():
        asked = {name: (layout, saved.get(name), None) for name, layout in named.items()}
        asked |= {
            name: (named[layout], None, saved[source]) for name, (source, layout) in resumed.items() if layout in named
        }
        cases = {
            name: {
                "options": [*options, *(f"parallel.{option}" for option in layout.split())],
                "save": save,
                "load": load,
            }
            for name, (layout, save, load) in asked.items()
        }
        (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        torchrun(processes, worker, str(folder / "cases.json"), str(folder / "found.json"))
        found |= json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found
