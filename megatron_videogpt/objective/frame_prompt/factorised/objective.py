"""Noise prediction for the factorised network: a chunk of noisy frames behind clean ones, which are given (Ca2-VDM,
arXiv 2411.16375; reference README sections 4 and 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....data.plans import Sample
from ....hub.common.ddpm import STEPS, noised
from ....model.patches import grid_of
from ....sequence.row import Row
from ...base import ONLY, Metric, Score, Turn
from ...breakdown import Breakdown, by_prompt
from ...noise import normal, posterior, uniform
from ..prompts import prompt_length
from .loss import metrics_of, score_of, training_schedule
from .rows import Text, Video, assemble
from .variant import CYCLIC, Variant, temporal_places


@dataclass(frozen=True)
class FactorisedPrompt:
    """The objective.  patch: `model.patch_size`; prompts: lengths of a prompt, ascending; chunk: frames that are
    denoised behind it; prompt_step: whose noise the prompt gets, while its timestep stays 0; -1 for none.

    A sample is cut behind its chunk.  Where a text is dropped, or there is none, "no text" stands in its place.
    """

    unit: ClassVar[str] = "frame"
    loss_label: ClassVar[str] = "squared error of the noise, and bits of the variance"

    variant: Variant
    patch: int
    prompts: tuple[int, ...]
    chunk: int
    prompt_step: int = -1

    @property
    def breakdowns(self) -> tuple[Breakdown, ...]:
        """By place behind the prompt, and by its length."""
        return by_prompt(self.prompts, self.chunk)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See `Objective`: the loss's parts and by noise level, in validation by place and by the prompt's length."""
        return metrics_of(self.breakdowns)

    def split(self, sample: Sample) -> tuple[int, int]:
        """Frames of the prompt, and frames behind it that are denoised."""
        frames = len(sample.mean)
        prompt = prompt_length(sample.key, frames, self.prompts)
        return prompt, min(self.chunk, frames - prompt)

    def length(self, sample: Sample) -> int:
        """See `Objective.length`."""
        rows, columns = grid_of(sample.mean, self.patch)
        return sum(self.split(sample)) * rows * columns

    def video(self, sample: Sample) -> Video:
        """One sample with its noise: one timestep of all noisy frames, uniform; noise of their own for given ones."""
        key, (prompt, chunk) = sample.key, self.split(sample)
        frames = prompt + chunk
        data = posterior(sample.mean, sample.logvar, key, "target posterior")[:frames]
        noise = normal(key, "noise", tuple(sample.mean.shape))[:frames]
        step = _below(key, "timestep", STEPS, sample.stratum)
        schedule = training_schedule(torch.device("cpu"))
        given = (
            data[:prompt] if self.prompt_step < 0 else noised(schedule, data[:prompt], noise[:prompt], self.prompt_step)
        )
        noisy = noised(schedule, data[prompt:], noise[prompt:], step)
        timestep = torch.where(torch.arange(frames) < prompt, 0, step)
        return Video(
            latents=torch.cat([given, noisy]),
            prompt=prompt,
            timestep=timestep,
            places=self._places(key, frames),
            text=self._text(sample),
            noise=noise[prompt:],
            start=data[prompt:],
            scored=sample.scored,
            key=key,
        )

    def _places(self, key: int, frames: int) -> Tensor:
        """Clips as long as the table begin anywhere in it; the published code draws once for a whole batch."""
        whole = self.variant.positions == CYCLIC and frames == self.variant.places
        start = _below(key, "place", self.variant.places) if whole else 0
        return torch.tensor(temporal_places(self.variant, frames, start))

    def _text(self, sample: Sample) -> Text | None:
        if not self.variant.text_width:
            return None
        if sample.condition is None:
            # As an empty text, of which the end alone is seen.
            return Text(torch.zeros(1, self.variant.text_width), dropped=True)
        return Text(sample.condition, dropped=sample.dropped)

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective.prepare`."""
        return assemble([self.video(sample) for sample in samples], multiple, self.variant, self.patch)

    def given(self, row: Row, turn: Turn) -> Row:
        """See `Objective.given`."""
        return row

    def score(self, output: Tensor, row: Row, turn: Turn = ONLY) -> Score:
        """See `Objective.score`: of the noisy frames alone."""
        return score_of(output, row, self.patch**2, self.breakdowns)


def _below(key: int, purpose: str, count: int, stratum: tuple[int, int] | None = None) -> int:
    """A whole number from 0 to count - 1 of (key, purpose), uniform; stratum: see `uniform`."""
    return min(int(uniform(key, purpose, 1, stratum) * count), count - 1)
