"""A published transformer: its settings as recorded folders have them, and its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...config.schema import ModelConfig
from ...model.parameters import Parameter
from .parameters import APART, JOINT, published
from .vocabulary import Vocabulary


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """The published backbone in these sizes, like GPT-2's."""
    return ModelConfig(
        num_layers=settings["num_layers"],
        hidden_size=settings["hidden_size"],
        ffn_hidden_size=settings["ffn_size"],
        num_attention_heads=settings["num_heads"],
        max_position_embeddings=settings["max_positions"],
        norm_epsilon=settings.get("layer_norm_eps", 1e-5),
        patch_size=1,
        norm="layer",
        activation="gelu",
        biases=True,
        positions="learned",
    )


def open_folder(folder: Path) -> tuple[ModelConfig, dict[str, Any], Callable[[Parameter], Tensor]]:
    """(model, config.json, tensors by parameter) of a folder with `config.json` and `model.safetensors`."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    return model_of(settings), settings, lambda entry: torch.cat([tensors[key] for key in published(entry.hf)])


def vocabulary_in(settings: Mapping[str, Any], block: int) -> Vocabulary:
    """Ids of a recorded case or checkpoint, in blocks of so many tokens."""
    return Vocabulary(settings["mode"], block, settings["codes"], settings["text_ids"])


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the table's keys -> by the published ones."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        parts = value.chunk(len(APART)) if JOINT in key else (value,)
        found.update(zip(published(key), parts))
    return found
