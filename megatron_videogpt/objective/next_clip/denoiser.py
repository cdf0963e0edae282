"""The sequences of next clip diffusion when sampling, and its denoiser, with or without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config
from ...hub.common.sampling_videogpt import Denoiser, Recompute
from ...model.patches import grid_of
from ...sequence.layout import Clip, ClipShape, Layout, history_shape, layout
from ..flow_cache import CachedDenoiser
from ..flow_denoiser import Form, predict_function, tokens_of
from ..flow_rows import Sequence, assemble


def form_of(config: Config) -> Form:
    """See `flow_denoiser.Form`: the history is clean frames, the clip noisy ones."""
    patch = config.model.patch_size

    def whole(history: Tensor, clip: Tensor, t: float, condition: Tensor | None) -> Sequence:
        shape = history_shape(len(history), len(clip), grid_of(clip, patch), tokens_of(condition))
        return Sequence(layout(shape), clip, history, torch.full((len(clip),), t), prefix=condition)

    def past(frames: Tensor, position: int) -> Sequence:
        alone = layout(ClipShape((Clip(len(frames), has_noisy=False),), grid_of(frames, patch)))
        return _sequence(alone, position, frames[:0], frames)

    def clip(noisy: Tensor, position: int) -> Sequence:
        return _sequence(layout(history_shape(0, len(noisy), grid_of(noisy, patch))), position, noisy, noisy[:0])

    return Form(whole, past, clip, assemble)


def _sequence(alone: Layout, position: int, noisy: Tensor, clean: Tensor) -> Sequence:
    """Latents at a layout whose positions start at `position`; timesteps are filled in later."""
    return Sequence(replace(alone, position=alone.position + position), noisy, clean, torch.zeros(len(noisy)))


def build_denoiser(chunks: list[Any], config: Config, device: torch.device) -> Denoiser:
    """The model as the sampler sees it, with its memory of the history as `config.sample` has it.

    Every rank of a model parallel group must use its denoiser in the same way.
    """
    form = form_of(config)
    if not config.sample.cache:
        return Recompute(predict_function(chunks, config, device, form))
    return CachedDenoiser(chunks, config, device, form)
