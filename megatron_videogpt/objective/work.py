"""What training samples ask of devices, whatever is learned: what an objective says of its sequences in closed form.

Rows are packed and dealt by it, and `check`, the planner and the estimates of memory and communication rest on it.  No
NumPy here: `check` asks, and importing it would take much of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..data.sample_work import SampleWork

if TYPE_CHECKING:
    import numpy as np

    from ..data.plans import Plans

Number = TypeVar("Number", float, "np.ndarray")


@dataclass(frozen=True)
class Work(Generic[Number]):
    """Work of a sequence, of several together, or an expectation; or of each of n samples, int64 [n] all.

    tokens: without padding; pairs: (query, key) pairs that attend, of all masks; scored: tokens whose output the head
    reads; scored_pairs: of the pairs, those of scored tokens in a mean mask, None where an objective does not say: its
    scored tokens are taken to attend as many as others.
    """

    tokens: Number
    pairs: Number
    scored: Number
    scored_pairs: Number | None = None

    def times(self, samples: float) -> Work[Number]:
        """Of `samples` alike, in one row or several."""
        scored_pairs = None if self.scored_pairs is None else self.scored_pairs * samples
        return Work(self.tokens * samples, self.pairs * samples, self.scored * samples, scored_pairs)


def expectation(parts: Sequence[tuple[Work[float], float]]) -> Work[float]:
    """Of works with their probabilities; all or none of them say `scored_pairs`."""
    names = [field.name for field in fields(Work) if getattr(parts[0][0], field.name) is not None]
    return Work(**{name: sum(getattr(work, name) * share for work, share in parts) for name in names})


class ObjectiveWork(SampleWork, Protocol):
    """The closed forms of a run's objective.  Frames are latent frames; a frame's size is (height, width) in pixels."""

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """Of each sample, exactly: int64 [n]."""
        ...

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """Mean over the random draws of samples of `data.frames` frames of this size."""
        ...

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """The longest sequence that a draw of `data.frames` frames of this size can give; none has more pairs."""
        ...

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """What else `check` prints of a sequence: (label, its value in a mean one, its value in the longest one).

        expected, largest: sizes of the frames of either.
        """
        ...
