"""What a training sequence of next block prediction asks for: closed forms of its layout and mask, for numbers and for
arrays of samples alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...codec.geometry import Geometry
from ...config.schema import Config
from ...model.flops import attention_flops, linear_flops
from ..work import Number, Work
from .vocabulary import HYBRID, Vocabulary, vocabulary_of

if TYPE_CHECKING:
    import numpy as np

    from ...data.plans import Plans


@dataclass(frozen=True)
class BlockWork:
    """`ObjectiveWork` of next block prediction.

    prefix: tokens of a condition; stride: pixels per side of a token; frames: latent frames of a sample; weights: FLOPs
    of a token and of an attended pair.
    """

    vocabulary: Vocabulary
    prefix: int = 0
    stride: int = 1
    frames: int = 1
    weights: tuple[float, float] = (0.0, 0.0)

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`: one token, as `model.patch_size` is 1."""
        return 1

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`."""
        return f"{self.stride} {self.vocabulary.layout} {self.vocabulary.block} {self.prefix}"

    def of_tokens(self, tokens: Number) -> Work[Number]:
        """Of videos of so many tokens, whole blocks."""
        block, prefix, hybrid = self.vocabulary.block, self.prefix, self.vocabulary.layout == HYBRID
        # Block k of the input, from 1, sees the condition and k blocks; the last block of a video is no input, but the
        # hybrid's first, of single steps, is one more.
        blocks = tokens // block - 1 + hybrid
        pairs = prefix * prefix + block * (prefix * blocks + block * blocks * (blocks + 1) // 2)
        if hybrid:
            pairs = pairs - block * (block - 1) // 2
        scored = blocks * block
        # All but the condition is scored.
        return Work(prefix + scored, pairs, scored, pairs - prefix * prefix)

    def _tokens(self, frames: Number, height: Number, width: Number) -> Number:
        return frames * (height // self.stride) * (width // self.stride)

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`."""
        return self.of_tokens(self._tokens(plans.count, plans.height, plans.width))

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self.of_tokens(self._tokens(frames, *sizes)).tokens

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`."""
        return self.of_tokens(self._tokens(frames, *sizes)).tokens

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self.of_tokens(float(self._tokens(self.frames, *frame)))

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`: nothing is drawn."""
        return self.expected(frame)

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        mean, most = (self._tokens(self.frames, *frame) for frame in (expected, largest))
        block, prefix = self.vocabulary.block, str(self.prefix)
        facts = [("video tokens", f"{mean}", f"{most}"), (f"blocks of {block}", f"{mean // block}", f"{most // block}")]
        return [*facts, ("condition tokens", prefix, prefix)] if self.prefix else facts


def work_of(config: Config, codec: Geometry) -> BlockWork:
    """`BlockWork` of a run."""
    vocabulary, model = vocabulary_of(config), config.model
    # An embedding is looked up, which costs nothing; nearly every token is scored.
    weights = linear_flops(model, vocabulary.size * model.hidden_size, 1), attention_flops(model, 1)
    return BlockWork(vocabulary, config.condition.most_tokens, codec.spatial_stride, config.data.frames, weights)
