"""Recorded cases of another implementation, a `.json` with a `.safetensors` beside it, and the worst error of each
quantity that was compared with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Report:
    """Worst error of each quantity, and the case that has it.

    limits: the largest error of each quantity that passes.
    """

    limits: dict[str, float]
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)

    def add(self, quantity: str, error: float, case: str) -> None:
        """Record one comparison; a NaN counts as infinite."""
        error = float("inf") if error != error else error
        self.compared[quantity] = self.compared.get(quantity, 0) + 1
        if quantity not in self.worst or error > self.worst[quantity][0]:
            self.worst[quantity] = (error, case)

    def differing(self, quantity: str, ours: Tensor, recorded: Tensor, case: str) -> None:
        """Number of entries that differ, where equal ones are asked for."""
        same = ours.shape == recorded.shape
        self.add(quantity, float((ours.detach().cpu() != recorded).sum()) if same else float("inf"), case)

    def compare(self, quantity: str, ours: Tensor, recorded: Tensor, case: str) -> None:
        """Largest deviation as a fraction of the recorded tensor's largest absolute value."""
        if tuple(ours.shape) != tuple(recorded.shape):
            raise ValueError(f"{case}, {quantity}: shape {tuple(ours.shape)}, recorded {tuple(recorded.shape)}")
        if recorded.numel():
            scale = recorded.abs().max().clamp_min(1e-12)
            self.add(quantity, float((ours.detach().cpu() - recorded).abs().max() / scale), case)

    def failures(self) -> list[str]:
        """One line per quantity above its limit."""
        return [
            f"{name}: {error:.3g} in case {case}, limit {self.limits[name]:g}"
            for name, (error, case) in self.worst.items()
            if error > self.limits[name]
        ]


class Cases:
    """One pair of files, `<name>.json` and `<name>.safetensors`; the latter is absent where nothing is recorded as a
    tensor.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, path = folder, folder / f"{name}.json"
        self.present = path.is_file()
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if self.present else {"cases": []}
        tensors = folder / f"{name}.safetensors"
        self.tensors = load_file(tensors) if self.present and tensors.is_file() else {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.meta["cases"])

    def get(self, holder: dict[str, Any], name: str) -> Tensor:
        """A tensor that a case, sample or clip names."""
        return self.tensors[holder["tensors"][name]["key"]]

    @property
    def hint_ids(self) -> tuple[int, int, int]:
        """Token ids of `<|diffusion|>`, `<img>`, `</img>`."""
        ids = self.meta["token_ids"]
        return ids["diffusion"], ids["img_start"], ids["img_end"]
