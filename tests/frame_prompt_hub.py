"""Small models of the stand-alone network of frame as prompt, and their comparison with recorded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import FramePromptConfig
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.objective.recorded import Report
from tools import parity_vidgpt


def compared(folder: Path) -> Report:
    report = Report(parity_vidgpt.LIMITS)
    assert parity_vidgpt.check_folder(folder, report) == []
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
