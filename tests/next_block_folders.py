"""Folders of next block prediction, for the tests of conversion: a recorded one, and one with another backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape
from tests.tokenizer import saved

GOLDEN = Path(__file__).resolve().parent / "golden" / "nbp"
LEVELS = {"tiny_k600": (8, 5, 5), "tiny_ucf": (8, 5, 5), "tiny_given": (5, 4, 3), "like Phi-3": (5, 4, 3)}
BLOCKS = ("tiny_k600", "like Phi-3")
PHI: dict[str, Any] = {
    "model_type": "nbp",
    "mode": "hybrid",
    "block": 4,
    "block_shape": [1, 2, 2],
    "codes": 60,
    "text_ids": 3,
    "prefix": 1,
    "prefix_kind": "label",
    "class_names": ["fall", "roll", "übrige"],
    "vocab_size": 67,
    "max_positions": 4096,
    "num_layers": 2,
    "num_heads": 4,
    "num_query_groups": 2,
    "hidden_size": 32,
    "ffn_size": 48,
    "layer_norm_eps": 1e-6,
    "norm": "rms",
    "activation": "swiglu",
    "biases": False,
    "positions": "rope",
}
"""Grouped queries, RoPE and a gate: this project's own backbone."""


def phi_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of `PHI`, written out."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (67, 32),
        "uncond_embedding": (1, 32),
        "ln_f.weight": (32,),
        "head.weight": (67, 32),
    }
    for layer in range(2):
        parts = {"ln1": (32,), "ln2": (32,), "attn.query": (32, 32), "attn.key": (16, 32), "attn.value": (16, 32)}
        parts |= {"attn.proj": (32, 32), "mlp.gate_up": (96, 32), "mlp.2": (32, 48)}
        shapes |= {f"blocks.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def block_folder(path: Path, name: str) -> Path:
    """A folder with its tokenizer."""
    if name == "like Phi-3":
        path.mkdir(parents=True)
        draws = torch.Generator().manual_seed(2)
        tensors = {key: torch.randn(shape, generator=draws) / 4 for key, shape in phi_shapes().items()}
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(PHI))
    else:
        shutil.copytree(GOLDEN / name, path)
    saved(path / "tokenizer", FSQShape(4, 2, 1, LEVELS[name]))
    return path
