"""Next clip diffusion: denoise every clip given the clean clips before it (Video-GPT; reference
README sections 2-8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.plans import Sample
from ...model.patches import grid_of
from ...sequence.layout import Layout, layout, training_shape
from ...sequence.row import Inputs
from ..noise import mix, normal, posterior, uniform
from .rows import Sequence, assemble


@dataclass(frozen=True)
class NextClipDiffusion:
    """The objective.  patch_size, table_side: of the model; clean_retention: beta of the clean copies' noise."""

    patch_size: int
    table_side: int
    clean_retention: float = 0.9

    def layout(self, sample: Sample) -> Layout:
        """See `Objective.layout`."""
        return layout(training_shape(sample.clips, grid_of(sample.mean, self.patch_size)))

    def sequence(self, sample: Sample) -> Sequence:
        """One sample with its noise (section 8): a timestep per clip, a retention per clean frame, two draws from the
        posterior.
        """
        key, shape = sample.key, tuple(sample.mean.shape)
        target = posterior(sample.mean, sample.logvar, key, "target posterior")
        timestep = uniform(key, "timestep", len(sample.clips)).repeat_interleave(torch.tensor(sample.clips))
        kept = sum(sample.clips[:-1])
        clean = posterior(sample.mean, sample.logvar, key, "clean posterior")[:kept]
        retention = self.clean_retention + (1 - self.clean_retention) * uniform(key, "clean retention", shape[0])[:kept]
        return Sequence(
            layout=self.layout(sample),
            noisy=mix(target, normal(key, "noise", shape), timestep),
            clean=mix(clean, normal(key, "clean noise", shape)[:kept], retention),
            timestep=timestep,
            target=target,
            scored=sample.scored,
        )

    def prepare(self, samples: list[Sample], multiple: int) -> Inputs:
        """See `Objective.prepare`."""
        return assemble([self.sequence(sample) for sample in samples], self.patch_size, self.table_side, multiple)

    def loss(self, output: Tensor, inputs: Inputs) -> tuple[Tensor, int, Tensor]:
        """Squared error of each patch's latents, averaged inside a frame, summed over frames (section 8)."""
        error = (output - inputs.target).square().mean(dim=-1) * inputs.weight
        per_frame = torch.zeros_like(inputs.timestep).index_add(0, inputs.noisy_frame, error.detach())
        return error.sum(), inputs.frames, per_frame
