"""What a training sequence of next clip diffusion asks for: closed forms of its layout and mask.

They are written once, in `_work`, for numbers and for arrays of samples alike.  No NumPy here: `check` asks, and
importing it would take much of its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...codec.geometry import Geometry
from ...config.schema import Config
from ...model.flops import attention_flops, linear_flops
from ..work import Number, Work, expectation
from .parameters import end_weights

if TYPE_CHECKING:
    import numpy as np

    from ...data.plans import Plans


@dataclass(frozen=True)
class NextClipWork:
    """`ObjectiveWork` of next clip diffusion.

    cell: pixels per side of a patch, the codec's stride times `model.patch_size`; frames: latent frames of a sample;
    clips: fewest and most clips into which those are cut that are not given; weights: FLOPs of a token and of an
    attended pair; given: fewest and most frames that are given; prefix: most tokens of a condition, which expectations
    take every text to have; dropped: share of samples without a condition.
    """

    cell: int
    frames: int
    clips: tuple[int, int]
    weights: tuple[float, float]
    given: tuple[int, int] = (0, 0)
    prefix: int = 0
    dropped: float = 0.0

    @property
    def blank(self) -> int:
        """See `ObjectiveWork.blank`: one noisy frame of one patch."""
        return 3

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`: all else follows from the clips, which a plan has."""
        return str(self.cell)

    def patches(self, height: Number, width: Number) -> Number:
        """Tokens of a frame's picture; height, width: in pixels."""
        return (height // self.cell) * (width // self.cell)

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`."""
        # A dropped condition leaves nothing in the sequence: no prefix, and none of the given frames.
        without = plans.given * plans.dropped
        frames, kept, squares = plans.count - without, plans.kept - without, plans.squares - without * without
        patches, prefix = self.patches(plans.height, plans.width), plans.prefix * ~plans.dropped
        return _exact(frames, kept, squares, patches, plans.given - without, prefix)

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self._longest(frames, self.patches(*sizes)).tokens

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`: a frame's clean copy has the positions of its noisy one."""
        return self.prefix + frames * (self.patches(*sizes) + 2)

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        patches, counts = self.patches(*frame), self._given_counts
        parts = []
        for given in counts:
            share = self.dropped if given or self.prefix else 0.0
            parts.append((_mean(self.frames - given, self.clips, patches), share / len(counts)))
            kept = _mean(self.frames - given, self.clips, patches, given, self.prefix)
            parts.append((kept, (1 - share) / len(counts)))
        return expectation(parts)

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self._longest(self.frames, self.patches(*frame))

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        facts = [("patches per frame", str(self.patches(*expected)), str(self.patches(*largest)))]
        for place, what in enumerate(("noisy frames", "clean frames", "condition tokens")):
            mean, most = (self._counts(longest)[place] for longest in (False, True))
            if what != "condition tokens" or self.prefix:
                facts.insert(-1 if place < 2 else len(facts), (what, f"{mean:.1f}", f"{most:.1f}"))
        return facts

    def _counts(self, longest: bool) -> tuple[float, float, float]:
        """Noisy frames, clean frames and tokens of the prefix, of a mean sequence or the longest one."""
        if longest:
            given = self._fewest_given(self.frames)
            return self.frames - given, self._most_kept(self.frames), self.prefix
        counts, share = self._given_counts, 1 - self.dropped
        given, noisy = sum(counts) / len(counts) * share, self.frames - sum(counts) / len(counts)
        kept = sum(_expectations(self.frames - count, self.clips)[0] for count in counts) / len(counts)
        return noisy, kept + given, self.prefix * share

    @property
    def _given_counts(self) -> range:
        low, high = (min(bound, self.frames - 1) for bound in self.given)
        return range(low, high + 1)

    def _longest(self, frames: Number, patches: Number) -> Work[Number]:
        """Of the longest sequence: fewest frames given, one clip of all others that are kept, and the last one."""
        kept, given = self._most_kept(frames), self._fewest_given(frames)
        squares = given * given + (kept - given) * (kept - given) + (frames - kept) * (frames - kept)
        return _exact(frames, kept, squares, patches, given, self.prefix + 0 * frames)

    def _fewest_given(self, frames: Number) -> Number:
        """At least one frame is left to predict."""
        low = self.given[0]
        return low - (low - frames + 1) * (frames <= low)

    def _most_kept(self, frames: Number) -> Number:
        """Frames with a clean copy when there are most: the last clip has one frame, or all that are not given where it
        is the only one.
        """
        return frames - 1 if self.clips[1] > 1 else self._fewest_given(frames)


def work_of(config: Config, codec: Geometry) -> NextClipWork:
    """`NextClipWork` of a run."""
    model = config.model
    weights = linear_flops(model, end_weights(model, codec.channels), 1), attention_flops(model, 1)
    cell = codec.spatial_stride * config.model.patch_size
    condition = config.condition
    told = condition.frames, condition.most_tokens, condition.dropout
    return NextClipWork(cell, config.data.frames, config.data.clips, weights, *told)


def clip_work(clips: Sequence[int], patches: int) -> Work[float]:
    """Of one sequence with these frames per clip and patches per frame; whole numbers."""
    return _exact(sum(clips), sum(clips[:-1]), sum(n * n for n in clips), patches)


def _exact(
    frames: Number, kept: Number, squares: Number, patches: Number, given: Number | int = 0, prefix: Number | int = 0
) -> Work[Number]:
    """Of whole numbers.  kept: frames with a clean copy; squares: sum of n*n over the clips, given frames being one;
    given: frames that are clean only.
    """
    # Of the frames' ordered pairs, those of different clips come twice; both differences are even.
    before, within = (frames * frames - squares) // 2, squares - given * given
    return _work(frames - given, kept, within, before, kept * (kept - 1) // 2, patches, prefix)


def _mean(frames: int, clips: tuple[int, int], patches: float, given: int = 0, prefix: int = 0) -> Work[float]:
    """Expected work of a sequence of so many frames to predict behind those that are given."""
    kept, kept_squared, squares = _expectations(frames, (min(clips[0], frames), min(clips[1], frames)))
    before = (frames**2 - squares) / 2 + given * frames
    between = (kept_squared + (2 * kept + given) * given - kept - given) / 2
    return _work(float(frames), kept + given, squares, before, between, patches, float(prefix))


def _work(
    noisy: Number,
    clean: Number,
    within: Number,
    before: Number,
    between: Number,
    patches: Number,
    prefix: Number | int = 0,
) -> Work[Number]:
    """noisy, clean: frames of either kind; within: ordered pairs of noisy frames of one clip, each with itself too;
    before: pairs of a noisy and a clean frame of an earlier clip; between: pairs of clean frames; prefix: tokens that
    see each other and are seen by all others.
    """
    block = patches + 2
    # A clean frame sees all earlier clean frames (block tokens each way) and itself by roles: 1 + P(P+1) + B pairs.
    of_clean = block * block * between + clean * (1 + patches * (patches + 1) + block)
    # A noisy clip of n frames sees its history, and itself by roles: n*n, n*2n and nP*nB pairs.
    of_noisy = block * block * before + within * (3 + patches * block)
    tokens = (noisy + clean) * block
    pairs = prefix * (prefix + tokens) + of_clean + of_noisy
    return Work(prefix + tokens, pairs, noisy * patches, patches * (block * (before + within) + prefix * noisy))


# A planner asks for the same ones thousands of times.
@lru_cache(maxsize=64)
def _expectations(frames: int, clips: tuple[int, int]) -> tuple[float, float, float]:
    """Means over K uniform in `clips` and K - 1 distinct uniform cut points: frames with a clean copy, their square,
    and the sum of n*n over the clips.

    Every clip of such a split has the same distribution: P(n) = C(N-n-1, K-2) / C(N-1, K-1).
    """
    last = squares = kept_squared = 0.0
    counts = range(clips[0], clips[1] + 1)
    for k in counts:
        for n in range(1, frames - k + 2):
            chance = float(n == frames) if k == 1 else math.comb(frames - n - 1, k - 2) / math.comb(frames - 1, k - 1)
            last += chance * n / len(counts)
            squares += chance * k * n * n / len(counts)
            kept_squared += chance * (frames - n) ** 2 / len(counts)
    return frames - last, kept_squared, squares
