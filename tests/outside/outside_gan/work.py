"""A token for every cell of latents; each sees itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_videogpt.objective.work import Work


@dataclass(frozen=True)
class GanWork:
    """See `objective.work.ObjectiveWork`."""

    stride: int
    frames: int
    patch: int
    weights: tuple[float, float] = (1.0, 0.0)

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`."""
        return self.patch**2

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`."""
        return f"outside_gan {self.stride}"

    def _cells(self, height: Any, width: Any) -> Any:
        return (height // self.stride) * (width // self.stride)

    def of(self, plans: Any) -> Work[Any]:
        """See `ObjectiveWork`."""
        tokens = plans.count * self._cells(plans.height, plans.width)
        return Work(tokens, tokens, tokens)

    def longest(self, frames: Any, sizes: tuple[Any, Any]) -> Any:
        """See `ObjectiveWork`."""
        return frames * self._cells(*sizes)

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        tokens = self.frames * self._cells(*frame)
        return Work(tokens, tokens, tokens)

    largest = expected

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        return [("cells of a frame", f"{self._cells(*expected)}", f"{self._cells(*largest)}")]


def work_of(config: Any, codec: Any) -> GanWork:
    """See `objective.build`."""
    return GanWork(codec.spatial_stride, config.data.frames, config.model.patch_size)
