"""What travels along with a run that came from a Hugging Face folder: ``RUN/released/``, so that nothing of the folder
is lost on its way back.

`released.json` has the original config.json, the ids of the hint tokens, the dtype of every tensor, the folder's format
and licence; `side.safetensors` the tensors that the model has no parameter for (the whole text table, the position
table, ...); `files/` tokenizer, VAE and licence files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensor_files import Entry, write_tensors
from .untrusted import Stored, read_header, read_object, read_tensor

NAME = "released"
TENSORS = "side.safetensors"


class Side:
    """The ``released/`` folder of a run."""

    def __init__(self, run: Path) -> None:
        self.path = run / NAME
        self.facts: dict[str, Any] = read_object(self.path / "released.json")
        self.places: dict[str, Stored] = read_header(self.path / TENSORS) if (self.path / TENSORS).is_file() else {}

    @property
    def hint_ids(self) -> tuple[int, int, int]:
        """Rows of the hint tokens in the text table."""
        first, second, third = self.facts["hint_ids"]
        return first, second, third

    def dtype(self, key: str) -> torch.dtype:
        """Of a released tensor when it came in."""
        return getattr(torch, self.facts["dtypes"][key])

    def tensor(self, key: str) -> Tensor:
        """One of the tensors that the model has no parameter for."""
        return read_tensor(self.places[key])

    def files(self) -> list[Path]:
        """Files that go back into the folder, relative to ``files/``."""
        root = self.path / "files"
        return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def write_side(
    run: Path,
    facts: dict[str, Any],
    tensors: Sequence[Entry],
    files: Sequence[tuple[Path, Path]],
    progress: Callable[[int], None],
) -> None:
    """Make ``run/released/``.  files: (from, place below ``files/``)."""
    folder = run / NAME
    # A tokenizer may lie in it already.
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        (written,) = write_tensors(folder, tensors, sum(entry.size for entry in tensors), progress)
        written.rename(folder / TENSORS)
    for source, place in files:
        target = folder / "files" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / "released.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def copy_side_files(source: Path, run: Path) -> None:
    """Copy ``source/released/`` into a run that starts from its weights, where there is one and the run has none."""
    if not (source / NAME).is_dir() or (run / NAME).exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    partial = run / f"{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / NAME, partial)
    os.replace(partial, run / NAME)
