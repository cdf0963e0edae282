"""The stand-alone network of frame as prompt as parity with recorded numbers asks it (`vidgpt.Network`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from megatron_videogpt.errors import UserError, shortened
from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import FramePromptConfig
from megatron_videogpt.hub.frame_prompt.memory_frameprompt import CachedMemory, memory_of
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel
from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Memory
from tools.parity.vidgpt import Batch

SWITCHED_OFF = {"spatial_attn_enhance": ".attn_cf.", "temp_extra_in_channels": "attn_temp_pre_merge."}
"""Options that leave a layer out, with its keys, where they are null or 0."""


def model_of(folder: Path, overrides: dict[str, Any]) -> FramePromptModel:
    """A recorded checkpoint in a model of its config.json with other fields; UserError where it is none.  One that was
    cut names in `only` what is left of it, and the rest is zeros.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | overrides
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no checkpoint that can be read ({shortened(error)})") from error
    off = [name for option, name in SWITCHED_OFF.items() if not settings.get(option)]
    state = {key: value for key, value in state.items() if not any(name in key for name in off)}
    try:
        model = FramePromptModel(FramePromptConfig(**settings))
        if settings.get("only"):
            state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()} | state
        model.load_published(state)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    return model.eval()


def opened(folder: Path, overrides: dict[str, Any]) -> Plain:
    """See `vidgpt.Opened`."""
    return Plain(model_of(folder, overrides))


@dataclass
class Plain:
    """See `vidgpt.Network`."""

    model: FramePromptModel

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `vidgpt.Network`."""
        out = self.model(
            batch.latents, batch.times, batch.prompt, batch.start, batch.text, batch.text_mask, batch.dropped
        )
        return out.noise, out.variance

    def watched(self, batch: Batch) -> dict[str, Tensor]:
        """See `vidgpt.Network`."""
        seen: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda module, given, output: seen.update({name: output})

        hooks = [self.model.blocks[0].register_forward_pre_hook(lambda module, given: seen.update(embedded=given[0]))]
        for number, block in enumerate(self.model.blocks):
            hooks.append(block.register_forward_hook(note(f"block{number}.out")))
            hooks += [part.register_forward_hook(note(f"block{number}.{name}")) for name, part in _named(block)]
        self.predict(batch)
        for hook in hooks:
            hook.remove()
        return seen

    def gradients(self) -> dict[str, Tensor | None]:
        """See `vidgpt.Network`."""
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}

    def memory(self, cached: bool, window: int, text: Tensor | None, mask: Tensor | None, guided: bool) -> Memory:
        """See `vidgpt.Network`."""
        return memory_of(self.model, window, cached, text, mask, guided)

    def kept(self, memory: Memory) -> dict[str, Tensor]:
        """See `vidgpt.Network`."""
        assert isinstance(memory, CachedMemory)
        cache = memory.cache
        kept = {"temporal_kv": torch.stack([cache.in_order(block) for block in range(len(self.model.blocks))])}
        if self.model.config.spatial_attn_enhance:
            patches = kept["temporal_kv"].shape[3]
            keys = [cache.enhancing_keys(block) for block in range(len(self.model.blocks))]
            kept["spatial_kv"] = torch.stack([part.unflatten(1, (-1, patches)) for part in keys])
        return kept


def _named(block: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in block.named_children() if part is not None]
