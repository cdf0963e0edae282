"""What a training sequence of next clip diffusion asks for: closed forms of its layout and mask, of one and in
expectation.

No NumPy here: `check` asks, and importing it would take much of its time; `sample_work` has the same for arrays of
samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one training sequence asks for; expectations when the clip split is random.

    noisy, clean: frames of either kind; patches: per frame (P); pairs: (query, key) pairs that attend.
    """

    noisy: float
    clean: float
    patches: int
    pairs: float

    @property
    def tokens(self) -> float:
        """Tokens of the sequence: P + 2 per frame of either kind."""
        return (self.noisy + self.clean) * (self.patches + 2)


def clip_work(clips: Sequence[int], patches: int) -> Work:
    """The work of a training sequence with these frames per clip (closed form of the mask)."""
    frames = sum(clips)
    return _work(frames, clips[-1], sum(n * n for n in clips), (frames - clips[-1]) ** 2, patches)


def _work(frames: int, last: float, squares: float, kept_squared: float, patches: int) -> Work:
    """last: frames of the last clip; squares: sum of n*n over the clips; kept_squared: square of the frames with a
    clean copy.
    """
    block, kept = patches + 2, frames - last
    # A clean frame sees all earlier clean frames (block tokens each way) and itself by roles: 1 + P(P+1) + B pairs.
    clean = block * block * (kept_squared - kept) / 2 + kept * (1 + patches * (patches + 1) + block)
    # A noisy clip of n frames sees its history, and itself by roles: n*n, n*2n and nP*nB pairs.
    noisy = block * block * (frames * frames - squares) / 2 + squares * (3 + patches * block)
    return Work(frames, kept, patches, clean + noisy)


def expected_work(frames: int, clips: tuple[int, int], patches: int) -> Work:
    """Mean work over K uniform in `clips` and K - 1 distinct uniform cut points.

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
    return _work(frames, last, squares, kept_squared, patches)


def longest_work(frames: int, clips: tuple[int, int], patches: int) -> Work:
    """The longest sequence that the split can give: a last clip of one frame (of all frames where there is one clip
    only).
    """
    return clip_work((frames - 1, 1) if clips[1] > 1 else (frames,), patches)


def packed(work: Work, samples: float) -> Work:
    """`samples` alike in one row."""
    return Work(work.noisy * samples, work.clean * samples, work.patches, work.pairs * samples)
