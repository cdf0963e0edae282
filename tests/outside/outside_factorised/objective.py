"""Frames that are given, and a text: what do the frames look like to which noise was added?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.base import Metric, Score, Turn
from megatron_videogpt.objective.noise import mix, normal, posterior, uniform
from megatron_videogpt.sequence.row import Row

from .parameters import WORD
from .rows import Video, assemble
from .work import given_frames


@dataclass(frozen=True)
class Factorised:
    """See `objective.base.Objective`.  words, parts: of the options."""

    unit: ClassVar[str] = "frame"
    loss_label: ClassVar[str] = "mean squared error"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss_even_frames", "loss_by_frame", "even frames"),
        Metric("loss_odd_frames", "loss_by_frame", "odd frames"),
    )

    words: int
    parts: int

    def length(self, sample: Sample) -> int:
        """See `Objective`."""
        return sample.mean[:, 0].numel()

    def video(self, sample: Sample) -> Video:
        """One sample with its noise, more or less of it in each frame but for those that are given, and its text."""
        key, target = sample.key, posterior(sample.mean, sample.logvar, sample.key, "posterior")
        prompt, words = given_frames(key, len(target), self.parts), 1 + key // self.parts % self.words
        level = uniform(key, "level", len(target)).index_fill(0, torch.arange(prompt), 1.0)
        noisy = mix(target, normal(key, "noise", tuple(target.shape)), level)
        patch, cells = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in (noisy, target))
        return Video(patch, cells, normal(key, "words", (words, WORD)), level, prompt, sample.scored)

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective`."""
        return assemble([self.video(sample) for sample in samples], multiple)

    def given(self, row: Row, turn: Turn) -> Row:
        """See `Objective`."""
        return row

    def score(self, output: Tensor, row: Row, turn: Turn) -> Score:
        """Squared error, averaged inside a frame, summed over frames."""
        error = (output - row.target).square().mean(dim=-1) * row.weight
        odd = row.units["number"] % 2
        of_token = odd[row.streams["scored"]["frame"]]
        sums = torch.stack([(error.detach() * (of_token == kind)).sum() for kind in (0, 1)])
        counts = torch.stack([(row.counted * (odd == kind)).sum() for kind in (0, 1)])
        return Score(error.sum(), row.count, sums, counts.long())


def build(config: Config) -> Any:
    """See `objective.build`."""
    return Factorised(config.objective.words, config.objective.parts)
