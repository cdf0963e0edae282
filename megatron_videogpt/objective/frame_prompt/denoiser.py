"""The sequences of frame as prompt when sampling, and its denoiser, with or without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config
from ...hub.common.sampling_videogpt import Denoiser, Recompute
from ...model.patches import grid_of
from ..flow_cache import CachedDenoiser
from ..flow_denoiser import Form, predict_function
from ..flow_rows import Sequence
from .sequence import assemble_prompted, placed, prompt_layout, timesteps, whole_sequence


def form_of(config: Config) -> Form:
    """See `flow_denoiser.Form`: the history is frames at the clean timestep."""
    patch = config.model.patch_size

    def whole(history: Tensor, clip: Tensor, t: float, condition: Tensor | None) -> Sequence:
        return whole_sequence(history, clip, t, condition, patch)

    def past(frames: Tensor, position: int) -> Sequence:
        alone = placed(prompt_layout(len(frames), 0, grid_of(frames, patch)), position)
        return Sequence(alone, frames, frames[:0], timesteps(len(frames), 0, 0.0))

    def clip(noisy: Tensor, position: int) -> Sequence:
        alone = placed(prompt_layout(0, len(noisy), grid_of(noisy, patch)), position)
        # The first interval is left for what comes before.
        alone.intervals.copy_(alone.intervals.roll(2, dims=1))
        return Sequence(alone, noisy, noisy[:0], timesteps(0, len(noisy), 0.0))

    return Form(whole, past, clip, assemble_prompted)


def build_denoiser(chunks: list[Any], config: Config, device: torch.device) -> Denoiser:
    """The model as the sampler sees it, with its memory of the prompt as `config.sample` has it: with a cache, a
    `rollout.Forgetful` one.

    Clips of the first videos alone may be asked for.  Every rank of a model parallel group must use its denoiser in the
    same way.
    """
    form = form_of(config)
    if config.sample.cache:
        return CachedDenoiser(chunks, config, device, form)
    function = predict_function(chunks, config, device, form)

    def first(pasts: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]) -> list[Tensor]:
        return function(pasts[: len(clips)], clips, t, conditions[: len(clips)])

    return Recompute(first)
