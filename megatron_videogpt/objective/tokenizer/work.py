"""What training a tokenizer asks for.  A token is a code: 8x8 pixels of the first frame, or of four later ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...codec.geometry import FSQ_STRIDES, Geometry
from ...config.derived import typical_frame
from ...config.schema import Config
from ..work import Number, Work
from .sizes import decoder, encoder

if TYPE_CHECKING:
    import numpy as np

    from ...data.plans import Plans

SPACE, TIME = FSQ_STRIDES


@dataclass(frozen=True)
class TokenizerWork:
    """`ObjectiveWork` of tokenizer training.

    frames: of a clip; crop: side in pixels of the pieces that are learned from, 0 for whole frames; weights: FLOPs of a
    code of a typical clip, forward and backward through the tokenizer (not through discriminators and features), and 0,
    as nothing attends.
    """

    frames: int
    crop: int = 0
    weights: tuple[float, float] = (0.0, 0.0)

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`: a frame of 8x8 pixels."""
        return 1

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`."""
        return "tokenizer"

    def codes(self, frames: Number, height: Number, width: Number) -> Number:
        """Of a clip."""
        return ((frames - 1) // TIME + 1) * (self._side(height) // SPACE) * (self._side(width) // SPACE)

    def _side(self, side: Number) -> Number:
        """Of what is learned from; of arrays too."""
        return side if not self.crop else (side < self.crop) * side + (side >= self.crop) * self.crop

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`; a code stands beside the others, and sees itself."""
        codes = self.codes(plans.count, plans.height, plans.width)
        return Work(codes, codes, codes)

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self.codes(frames, *sizes)

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`."""
        return self.codes(frames, *sizes)

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        codes = float(self.codes(self.frames, *frame))
        return Work(codes, codes, codes)

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`: nothing is drawn."""
        return self.expected(frame)

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        codes = [f"{self.codes(self.frames, *frame)}" for frame in (expected, largest)]
        # The planner knows decoders: what convolutions keep for the backward pass is not among its numbers.
        missing = "activations, discriminators"
        return [("codes of what is learned from", codes[0], codes[1]), ("not in the memory below", missing, missing)]


def work_of(config: Config, codec: Geometry) -> TokenizerWork:
    """`TokenizerWork` of a run."""
    options, frames = config.objective, config.data.frames
    frame = typical_frame(config)
    height, width = (min(side, options.crop or side) for side in frame)
    sizes = options.width, options.units, len(options.levels), (frames, height, width)
    found = (*encoder(*sizes), *decoder(*sizes))
    bare = TokenizerWork(frames, options.crop)
    flops = 6.0 * sum(layer.multiplications for layer in found) / max(1.0, bare.expected(frame).tokens)
    return replace(bare, weights=(flops, 0.0))
