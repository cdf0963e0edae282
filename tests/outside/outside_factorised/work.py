"""A token for every cell of the latents; half of the layers attend within a frame, half from a cell to its past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_videogpt.codec.geometry import Geometry
from megatron_videogpt.config.schema import Config
from megatron_videogpt.model.flops import attention_flops, linear_flops
from megatron_videogpt.objective.work import Number, Work

from .parameters import end_weights

if TYPE_CHECKING:
    import numpy as np

    from megatron_videogpt.data.plans import Plans


def given_frames(key: Any, frames: Any, parts: int) -> Any:
    """How many of a sample's frames are given: never all of them.  Whole numbers, or int64 ``[n]`` all."""
    return frames * (key % parts) // parts


@dataclass(frozen=True)
class FactorisedWork:
    """See `objective.work.ObjectiveWork`.  Pairs are those of both masks.

    stride: pixels per side of a cell; frames: of a sample; parts: of the options; patch: `model.patch_size`; weights:
    FLOPs of a token and of a pair, which attends in every other layer.
    """

    stride: int
    frames: int
    parts: int
    patch: int
    weights: tuple[float, float]

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`."""
        return self.patch**2

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`."""
        return f"outside_factorised {self.stride} {self.parts}"

    def cells(self, height: Number, width: Number) -> Number:
        """Of a frame; height, width: in pixels."""
        return (height // self.stride) * (width // self.stride)

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`."""
        given = given_frames(plans.key, plans.count, self.parts)
        return _work(plans.count, given, self.cells(plans.height, plans.width))

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return frames * self.cells(*sizes)

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`."""
        return frames * self.cells(*sizes)

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        given = sum(given_frames(k, self.frames, self.parts) for k in range(self.parts)) / self.parts
        return _work(self.frames, given, self.cells(*frame))

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return _work(self.frames, 0, self.cells(*frame))

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        return [("cells of a frame", str(self.cells(*expected)), str(self.cells(*largest)))]


def _work(frames: Number, given: Number, cells: Number) -> Work[Number]:
    """A cell sees all cells of its frame, and itself in its own and each earlier frame."""
    in_space, in_time = frames * cells * cells, cells * frames * (frames + 1) // 2
    return Work(frames * cells, in_space + in_time, (frames - given) * cells)


def work_of(config: Config, codec: Geometry) -> FactorisedWork:
    """See `objective.build`."""
    model = config.model
    weights = linear_flops(model, end_weights(model, codec.channels), 1), attention_flops(model, 1) / 2
    return FactorisedWork(codec.spatial_stride, config.data.frames, config.objective.parts, model.patch_size, weights)
