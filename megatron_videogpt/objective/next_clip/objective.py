"""Next clip diffusion: denoise every clip given the clean clips before it (Video-GPT; reference
README sections 2-8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.schema import Config
from ...data.plans import Sample
from ...model.patches import grid_of
from ...model.prefix import no_prefix
from ...sequence.layout import Layout, layout, training_shape
from ...sequence.row import Row
from ..base import ONLY, Metric, Score, Turn
from ..breakdown import Breakdown, by_place
from ..flow_loss import flow_loss, flow_metrics, flow_score
from ..flow_rows import Sequence, assemble
from ..noise import mix, normal, posterior, uniform


@dataclass(frozen=True)
class NextClipDiffusion:
    """The objective.  patch_size, table_side: of the model; clean_retention: beta of the clean copies' noise;
    no_prefix: see `flow_rows.assemble`; frames: most latent frames of a video, by whose places and histories validation
    tells the loss apart; 0 for not at all.

    A dropped condition leaves nothing in the sequence: no prefix, and none of the given frames, as in the sampler's
    unconditional branch.
    """

    unit: ClassVar[str] = "frame"
    loss_label: ClassVar[str] = "mean squared error"

    patch_size: int
    table_side: int
    clean_retention: float = 0.9
    no_prefix: Tensor | None = None
    frames: int = 0

    @property
    def breakdowns(self) -> tuple[Breakdown, ...]:
        """By place and by history."""
        return by_place(self.frames)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See `Objective`: the loss by noise level, and in validation by place and by history."""
        return flow_metrics(self.breakdowns)

    def layout(self, sample: Sample) -> Layout:
        """Storage order, positions and mask of one sample."""
        clips, given, prefix = sample.clips[1:] if sample.given else sample.clips, sample.given, self._prefix(sample)
        if sample.dropped:
            given = 0
        grid = grid_of(sample.mean, self.patch_size)
        return layout(training_shape(clips, grid, 0 if prefix is None else len(prefix), given))

    def _prefix(self, sample: Sample) -> Tensor | None:
        return None if sample.dropped or self.no_prefix is None else sample.condition

    def length(self, sample: Sample) -> int:
        """See `Objective.length`."""
        return len(self.layout(sample))

    def sequence(self, sample: Sample) -> Sequence:
        """One sample with its noise (section 8): a timestep per clip, a retention per clean frame, two draws from the
        posterior.
        """
        key, shape, clips = sample.key, tuple(sample.mean.shape), sample.clips[1 if sample.given else 0 :]
        predicted, kept = slice(sample.given, None), slice(sample.given * sample.dropped, sum(sample.clips[:-1]))
        target = posterior(sample.mean, sample.logvar, key, "target posterior")[predicted]
        lengths = torch.tensor(clips)
        timestep = uniform(key, "timestep", len(clips), sample.stratum).repeat_interleave(lengths)
        clean = posterior(sample.mean, sample.logvar, key, "clean posterior")[kept]
        retention = self.clean_retention + (1 - self.clean_retention) * uniform(key, "clean retention", shape[0])[kept]
        return Sequence(
            layout=self.layout(sample),
            noisy=mix(target, normal(key, "noise", shape)[predicted], timestep),
            clean=mix(clean, normal(key, "clean noise", shape)[kept], retention),
            timestep=timestep,
            target=target,
            scored=sample.scored,
            prefix=self._prefix(sample),
            key=key,
            frame=torch.arange(sample.given, shape[0]),
            history=(lengths.cumsum(0) - lengths + sample.given * (not sample.dropped)).repeat_interleave(lengths),
        )

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective.prepare`."""
        sequences = [self.sequence(sample) for sample in samples]
        return assemble(sequences, self.patch_size, self.table_side, multiple, self.no_prefix)

    def loss(self, output: Tensor, row: Row) -> tuple[Tensor, Tensor]:
        """See `flow_loss.flow_loss`."""
        return flow_loss(output, row)

    def given(self, row: Row, turn: Turn) -> Row:
        """See `Objective.given`."""
        return row

    def score(self, output: Tensor, row: Row, turn: Turn = ONLY) -> Score:
        """See `Objective.score`."""
        return flow_score(*self.loss(output, row), row, self.breakdowns)


def build(config: Config) -> NextClipDiffusion:
    """See `objective.build`."""
    model, retention = config.model, config.objective.clean_retention
    return NextClipDiffusion(
        model.patch_size, model.position_table_size, retention, no_prefix(config), config.data.frames
    )
