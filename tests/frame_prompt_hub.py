"""Small models of the stand-alone network of frame as prompt, and their comparison with recorded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import FramePromptConfig
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.objective.recorded import Report
from tools.parity import vidgpt


def compared(folder: Path) -> Report:
    report = Report(vidgpt.LIMITS)
    assert vidgpt.check_folder(folder, report) == []
    return report


def model_of(seed: int = 1, **fields: Any) -> FramePromptModel:
    """A small network with sharp weights everywhere: published starting values leave layers silent."""
    sizes: dict[str, Any] = {"input_size": [4, 4], "hidden_size": 16, "depth": 2, "num_heads": 2, "max_tpe_len": 8}
    sizes |= {"spatial_attn_enhance": "prev_frames_2", "chunk": 2}
    model = FramePromptModel(FramePromptConfig(**sizes | fields)).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            value.copy_(normal(seed, name, tuple(value.shape)) * (0.3 if value.ndim > 1 else 0.1))
    return model


class Blend:
    """A solver that stays near unit size whatever the network predicts: DDPM's steps blow up what is not trained.  It
    draws in all steps but the last.
    """

    def __init__(self, *times: float) -> None:
        self.times = times

    def draws(self, number: int) -> bool:
        return number < len(self.times) - 1

    def step(
        self, number: int, z: Tensor, predicted: Tensor, without: Any = None, scale: float = 1, noise: Any = None
    ) -> Tensor:
        predicted = predicted if without is None else without + scale * (predicted - without)
        z = 0.5 * z + predicted[:, :, :4]
        return z if noise is None else z + 0.1 * noise
