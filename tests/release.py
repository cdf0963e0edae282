"""A small checkpoint folder in the released layout, for tests that open, break and convert one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.convert.folder import INDEX, WEIGHTS
from megatron_videogpt.convert.released import read_model_config
from megatron_videogpt.convert.table import EMBED_TOKENS, parameters
from megatron_videogpt.convert.tensor_files import Entry, write_tensors

MODEL = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=24, num_attention_heads=2, num_query_groups=1, position_table_size=4
)
CONFIG = {
    **{
        "model_type": "phi3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
    },
    **{
        "vocab_size": 12,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
    },
}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A whole model's, with a text table of 12 rows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {entry.hf: entry.shape(MODEL, 4) for entry in parameters(MODEL)} | {
        EMBED_TOKENS: (12, 16),
        "pos_embed": (1, 16, 16),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def sound_folder(path: Path) -> Path:
    """A folder of one file."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), path / WEIGHTS)
    return path


def entries(values: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(key, tuple(value.shape), value.dtype, lambda value=value: value) for key, value in values.items()]


def shard(folder: Path, max_bytes: int = 4000) -> dict[str, Any]:
    """Replace the one file by several; returns the index."""
    (folder / WEIGHTS).unlink()
    write_tensors(folder, entries(tensors()), max_bytes)
    return json.loads((folder / INDEX).read_text())


def refused(folder: Path, *parts: str, call: Callable[[Path], Any] = read_model_config) -> None:
    """One line of plain text that says each of ``parts``."""
    with pytest.raises(ValueError) as caught:
        call(folder)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 700 and all(part in text for part in (folder.name, *parts)), text
