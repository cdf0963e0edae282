"""Whether two Hugging Face folders hold the same tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open


def different(first: Path, second: Path) -> list[str]:
    """Tensors of two folders that are not the same bit by bit under the same key, read with the safetensors library,
    one of each at a time.
    """

    def places(folder: Path) -> dict[str, Path]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        return found

    here, there = places(first), places(second)
    wrong = sorted(here.keys() ^ there.keys())
    for key in here.keys() & there.keys():
        with safe_open(here[key], "pt") as one, safe_open(there[key], "pt") as two:
            a, b = one.get_tensor(key), two.get_tensor(key)
            # As bytes: a NaN is equal to itself, and -0 is not 0.
            if (
                a.dtype != b.dtype
                or a.shape != b.shape
                or not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
            ):
                wrong.append(key)
    return wrong
