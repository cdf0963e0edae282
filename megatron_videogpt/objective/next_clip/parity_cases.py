"""Recorded cases in the format of tests/golden/README.md, and the worst error of each quantity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

LIMITS = {
    "ids": 0.0,
    "positions": 0.0,
    "masks": 0.0,
    "noising": 1e-6,
    "components": 2e-5,
    "forward": 2e-5,
    "intermediates": 2e-5,
    "loss": 1e-5,
    "loss per frame": 1e-5,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
    "sampler": 5e-4,
    "cached sampler": 5e-4,
}


@dataclass
class Report:
    """Worst error of each quantity, and the case that has it."""

    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)

    def add(self, quantity: str, error: float, case: str) -> None:
        """Record one comparison; a NaN counts as infinite."""
        error = float("inf") if error != error else error
        self.compared[quantity] = self.compared.get(quantity, 0) + 1
        if quantity not in self.worst or error > self.worst[quantity][0]:
            self.worst[quantity] = (error, case)

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
            f"{name}: {error:.3g} in case {case}, limit {LIMITS[name]:g}"
            for name, (error, case) in self.worst.items()
            if error > LIMITS[name]
        ]


class Cases:
    """One pair of files, `<name>.json` and `<name>.safetensors`."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.json"
        self.present = path.is_file()
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if self.present else {"cases": []}
        self.tensors = load_file(folder / f"{name}.safetensors") if self.present else {}

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
