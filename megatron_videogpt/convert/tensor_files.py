"""Writing tensors as safetensors files with an index, one tensor at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .folder import INDEX, WEIGHTS
from .untrusted import DTYPES


@dataclass(frozen=True)
class Entry:
    """One tensor to write; ``read`` gives it when its turn comes, with this shape and dtype."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, entries: Sequence[Entry], max_bytes: int, progress: Callable[[int], None] | None = None
) -> list[Path]:
    """Write tensors as safetensors, in memory for one of them, and return the files.

    Files are filled in the entries' order up to ``max_bytes`` of tensors (one tensor may exceed it), named as
    transformers names them; several get an index. ``progress`` is called after each tensor with its bytes.  On an error
    (a full disk, say) what was written is removed; an existing file is an error.
    """
    assert len({entry.key for entry in entries}) == len(entries) and all(
        entry.dtype in DTYPES.values() for entry in entries
    )
    groups: list[list[Entry]] = [[]]
    for entry in entries:
        if groups[-1] and sum(item.size for item in groups[-1]) + entry.size > max_bytes:
            groups.append([])
        groups[-1].append(entry)
    one = len(groups) == 1
    paths = [
        folder / (WEIGHTS if one else f"model-{number:05d}-of-{len(groups):05d}.safetensors")
        for number in range(1, len(groups) + 1)
    ]
    written: list[Path] = []
    try:
        for path, group in zip(paths, groups):
            with path.open("xb") as file:
                written.append(path)
                _write_file(file, group, progress)
        if not one:
            weight_map = {entry.key: path.name for path, group in zip(paths, groups) for entry in group}
            index = {"metadata": {"total_size": sum(entry.size for entry in entries)}, "weight_map": weight_map}
            with (folder / INDEX).open("xb") as file:
                written.append(folder / INDEX)
                file.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
                _flush(file)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def _write_file(file: Any, entries: Sequence[Entry], progress: Callable[[int], None] | None) -> None:
    # Wide types first: readers that map the file need every tensor at a multiple of its type's width.
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        header[entry.key] = {
            "dtype": names[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for entry in ordered:
        value = entry.read()
        assert tuple(value.shape) == tuple(entry.shape) and value.dtype == entry.dtype, (
            f"{entry.key}: {tuple(value.shape)} {value.dtype}, announced {entry}"
        )
        file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        if progress is not None:
            progress(entry.size)
    _flush(file)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
