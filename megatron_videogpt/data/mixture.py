"""Several data sets, each with its own epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .jobs import Job
from .order import mixture_pattern
from .plans import Plans, SamplePlan
from .splits import Longest, VideoSplit, digest


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several data sets, each with its own epochs; a repeating pattern says which one the next sample is from.

    splits: `VideoSplit`s whose ``dataset`` is their place here; weights: above 0.  ``len``: samples until the last data
    set has given an epoch.
    """

    name: str
    splits: tuple[VideoSplit, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        pattern, counts, _ = self._pattern
        return max(-(-len(split) // int(count)) for split, count in zip(self.splits, counts)) * len(pattern)

    @cached_property
    def fingerprint(self) -> str:
        """See `Split`."""
        total = sum(self.weights)
        return digest(
            {
                "mixture": [
                    (split.fingerprint, round(weight / total, 12)) for split, weight in zip(self.splits, self.weights)
                ]
            }
        )

    def plans(self, seed: int, numbers: Sequence[int] | np.ndarray) -> Plans:
        """See `Split`."""
        given = np.asarray(numbers, np.int64)
        pattern, counts, before = self._pattern
        cycles, places = np.divmod(given, len(pattern))
        datasets = pattern[places]
        own = cycles * counts[datasets] + before[places]
        groups = [np.flatnonzero(datasets == i) for i in range(len(self.splits))]
        plans = Plans.concatenate(
            [split.plans(seed, own[group]) for split, group in zip(self.splits, groups) if len(group)]
        )
        return replace(plans.take(np.argsort(np.concatenate(groups), kind="stable")), number=given)

    def job(self, plan: SamplePlan) -> Job:
        """See `Split`."""
        return self.splits[plan.dataset].job(plan)

    def largest_tokens(self, longest: Longest) -> int:
        """See `Split`."""
        return max(split.largest_tokens(longest) for split in self.splits)

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return mixture_pattern(self.weights)
