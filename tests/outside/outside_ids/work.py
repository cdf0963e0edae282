"""Closed forms of block-causal sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_videogpt.model.flops import attention_flops, linear_flops
from megatron_videogpt.objective.work import Work

from .parameters import BITS


@dataclass(frozen=True)
class IdsWork:
    """See `objective.work.ObjectiveWork`."""

    stride: int
    block: int
    frames: int
    patch: int
    weights: tuple[float, float]

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`."""
        return max(0, self.patch**2 - self.block)

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`."""
        return f"outside_ids {self.stride} {self.block}"

    def _of(self, frames: Any, height: Any, width: Any) -> Work[Any]:
        blocks = frames * (height // self.stride) * (width // self.stride) // self.block - 1
        tokens = blocks * self.block
        # Block k, from 1, sees k blocks.
        return Work(tokens, self.block * self.block * blocks * (blocks + 1) // 2, tokens)

    def of(self, plans: Any) -> Work[Any]:
        """See `ObjectiveWork`."""
        return self._of(plans.count, plans.height, plans.width)

    def longest(self, frames: Any, sizes: tuple[Any, Any]) -> Any:
        """See `ObjectiveWork`."""
        return self._of(frames, *sizes).tokens

    def positions(self, frames: Any, sizes: tuple[Any, Any]) -> Any:
        """See `ObjectiveWork`."""
        return self._of(frames, *sizes).tokens

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self._of(self.frames, *frame)

    largest = expected

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        of = [f"{self._of(self.frames, *frame).tokens // self.block}" for frame in (expected, largest)]
        return [("blocks", of[0], of[1])]


def work_of(config: Any, codec: Any) -> IdsWork:
    """See `objective.build`."""
    ends = 2**BITS * config.model.hidden_size
    weights = linear_flops(config.model, ends, 1), attention_flops(config.model, 1)
    return IdsWork(codec.spatial_stride, config.objective.block, config.data.frames, config.model.patch_size, weights)
