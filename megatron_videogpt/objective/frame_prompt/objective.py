"""Frame as prompt: denoise a chunk of frames given the frames before it, which stand in the same sequence at the clean
timestep, causal in time throughout (ViD-GPT, arXiv 2406.10981; Ca2-VDM, arXiv 2411.16375, sections 3.1 and 3.2), with
Video-GPT's flow between noise and data and its prediction of clean latents.
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
from ...sequence.layout import Layout
from ...sequence.row import Row
from ..base import ONLY, Metric, Score, Turn
from ..breakdown import Breakdown, by_prompt
from ..flow_loss import flow_loss, flow_metrics, flow_score
from ..flow_rows import Sequence
from ..noise import mix, normal, posterior, uniform
from .factorised.objective import FactorisedPrompt
from .factorised.options import FACTORISED, variant_of_run
from .prompts import prompt_length
from .sequence import assemble_prompted, prompt_layout, timesteps


@dataclass(frozen=True)
class FramePromptDiffusion:
    """The objective.  patch_size, table_side: of the model; prompts: lengths of a prompt, ascending; chunk: frames that
    are denoised behind it; prompt_noise: share of noise in a prompt's frames; no_prefix: see `flow_rows.assemble`.

    A sample is cut behind its chunk.  A dropped condition leaves out its tokens, and no frame.
    """

    unit: ClassVar[str] = "frame"
    loss_label: ClassVar[str] = "mean squared error"

    patch_size: int
    table_side: int
    prompts: tuple[int, ...]
    chunk: int
    prompt_noise: float = 0.0
    no_prefix: Tensor | None = None

    @property
    def breakdowns(self) -> tuple[Breakdown, ...]:
        """By place behind the prompt, and by its length."""
        return by_prompt(self.prompts, self.chunk)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See `Objective`: the loss by noise level, and in validation by place behind the prompt and its length."""
        return flow_metrics(self.breakdowns)

    def split(self, sample: Sample) -> tuple[int, int]:
        """Frames of the prompt, and frames behind it that are denoised."""
        frames = len(sample.mean)
        prompt = prompt_length(sample.key, frames, self.prompts)
        return prompt, min(self.chunk, frames - prompt)

    def _prefix(self, sample: Sample) -> Tensor | None:
        return None if sample.dropped or self.no_prefix is None else sample.condition

    def layout(self, sample: Sample) -> Layout:
        """Storage order, positions and mask of one sample."""
        prefix = self._prefix(sample)
        grid = grid_of(sample.mean, self.patch_size)
        return prompt_layout(*self.split(sample), grid, 0 if prefix is None else len(prefix))

    def length(self, sample: Sample) -> int:
        """See `Objective.length`."""
        return len(self.layout(sample))

    def sequence(self, sample: Sample) -> Sequence:
        """One sample with its noise: one draw from the posterior, one timestep of the chunk, uniform on [0, 1)."""
        key, (prompt, chunk) = sample.key, self.split(sample)
        data = posterior(sample.mean, sample.logvar, key, "target posterior")[: prompt + chunk]
        noise = normal(key, "noise", tuple(sample.mean.shape))[: prompt + chunk]
        t = float(uniform(key, "timestep", 1, sample.stratum))
        kept = torch.cat([torch.full((prompt,), 1 - self.prompt_noise), torch.full((chunk,), t)])
        return Sequence(
            layout=self.layout(sample),
            noisy=mix(data, noise, kept),
            clean=data[:0],
            timestep=timesteps(prompt, chunk, t),
            target=data,
            scored=sample.scored,
            prefix=self._prefix(sample),
            key=key,
            frame=torch.arange(-prompt, chunk),
            history=torch.full((prompt + chunk,), prompt),
        )

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective.prepare`."""
        sequences = [self.sequence(sample) for sample in samples]
        return assemble_prompted(sequences, self.patch_size, self.table_side, multiple, self.no_prefix)

    def given(self, row: Row, turn: Turn) -> Row:
        """See `Objective.given`."""
        return row

    def score(self, output: Tensor, row: Row, turn: Turn = ONLY) -> Score:
        """See `Objective.score`: of the chunk's frames alone."""
        return flow_score(*flow_loss(output, row), row, self.breakdowns)


def build(config: Config) -> FactorisedPrompt | FramePromptDiffusion:
    """See `objective.build`."""
    model, options = config.model, config.objective
    if options.network == FACTORISED:
        step = options.factorised.prompt_step
        return FactorisedPrompt(variant_of_run(config), model.patch_size, options.prompts, options.chunk, step)
    return FramePromptDiffusion(
        model.patch_size,
        model.position_table_size,
        options.prompts,
        options.chunk,
        options.prompt_noise,
        no_prefix(config),
    )
