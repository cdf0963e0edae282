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
from ..work import Number, Work
from .parameters import end_weights

if TYPE_CHECKING:
    import numpy as np

    from ...data.plans import Plans


@dataclass(frozen=True)
class NextClipWork:
    """`ObjectiveWork` of next clip diffusion.

    cell: pixels per side of a patch, the codec's stride times `model.patch_size`; frames: latent frames of a sample;
    clips: fewest and most clips into which it is cut; weights: FLOPs of a token and of an attended pair.
    """

    cell: int
    frames: int
    clips: tuple[int, int]
    weights: tuple[float, float]

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
        return _exact(plans.count, plans.kept, plans.squares, self.patches(plans.height, plans.width))

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self._longest(frames, self.patches(*sizes)).tokens

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`: a frame's clean copy has the positions of its noisy one."""
        return frames * (self.patches(*sizes) + 2)

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        kept, kept_squared, squares = _expectations(self.frames, self.clips)
        before, between = (self.frames**2 - squares) / 2, (kept_squared - kept) / 2
        return _work(self.frames, kept, squares, before, between, self.patches(*frame))

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self._longest(self.frames, self.patches(*frame))

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        noisy = f"{self.frames:.1f}"
        kept = _expectations(self.frames, self.clips)[0], self._most_kept(self.frames)
        return [
            ("noisy frames", noisy, noisy),
            ("clean frames", f"{kept[0]:.1f}", f"{kept[1]:.1f}"),
            ("patches per frame", str(self.patches(*expected)), str(self.patches(*largest))),
        ]

    def _longest(self, frames: Number, patches: Number) -> Work[Number]:
        """Of the longest sequence: one clip of all frames that are kept, and the last one."""
        kept = self._most_kept(frames)
        return _exact(frames, kept, kept * kept + (frames - kept) * (frames - kept), patches)

    def _most_kept(self, frames: Number) -> Number:
        """Frames with a clean copy when there are most: the last clip has one frame, or all where it is the only
        one.
        """
        return frames - (1 if self.clips[1] > 1 else frames)


def work_of(config: Config, codec: Geometry) -> NextClipWork:
    """`NextClipWork` of a run."""
    model = config.model
    weights = linear_flops(model, end_weights(model, codec.channels), 1), attention_flops(model, 1)
    cell = codec.spatial_stride * config.model.patch_size
    return NextClipWork(cell, config.data.frames, config.data.clips, weights)


def clip_work(clips: Sequence[int], patches: int) -> Work[float]:
    """Of one sequence with these frames per clip and patches per frame; whole numbers."""
    return _exact(sum(clips), sum(clips[:-1]), sum(n * n for n in clips), patches)


def _exact(frames: Number, kept: Number, squares: Number, patches: Number) -> Work[Number]:
    """Of whole numbers.  kept: frames with a clean copy; squares: sum of n*n over the clips."""
    # Of the frames' ordered pairs, those of different clips come twice; both differences are even.
    return _work(frames, kept, squares, (frames * frames - squares) // 2, kept * (kept - 1) // 2, patches)


def _work(
    noisy: Number, clean: Number, within: Number, before: Number, between: Number, patches: Number
) -> Work[Number]:
    """noisy, clean: frames of either kind; within: ordered pairs of noisy frames of one clip, each with itself too;
    before: pairs of a noisy and a clean frame of an earlier clip; between: pairs of clean frames.
    """
    block = patches + 2
    # A clean frame sees all earlier clean frames (block tokens each way) and itself by roles: 1 + P(P+1) + B pairs.
    of_clean = block * block * between + clean * (1 + patches * (patches + 1) + block)
    # A noisy clip of n frames sees its history, and itself by roles: n*n, n*2n and nP*nB pairs.
    of_noisy = block * block * before + within * (3 + patches * block)
    return Work((noisy + clean) * block, of_clean + of_noisy, noisy * patches)


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
