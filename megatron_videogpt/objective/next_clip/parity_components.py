"""Single parts of the model compared with recorded numbers (tests/golden/README.md, section 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config, ModelConfig
from ...model.patches import patchify, position_axis, table_places, unpatchify
from ...model.rope import angles, attention_factor, inverse_frequencies
from ...model.timesteps import timestep_embedding
from ...sequence.layout import (
    history_shape,
    layout,
)
from ..flow_rows import Sequence, assemble
from ..recorded import Cases, Report


def check_components(cases: Cases, model: Any, config: Config, report: Report) -> None:
    """Single parts (README section 7)."""
    for case in cases:
        name, tensors = case["name"], {key: cases.get(case, key) for key in case["tensors"]}
        if name == "time":
            report.compare("components", timestep_embedding(tensors["t"]), tensors["sinusoid"], name)
            report.compare("components", model.embedding.time_token(tensors["t"]), tensors["time_token"], name)
            report.compare("components", model.head.time_embedder(tensors["t"]), tensors["t_embedder"], name)
        elif "pos_embed_crop" in tensors:
            _check_patches(case, tensors, model, config.model, report)
        elif "inv_freq" in tensors:
            _check_rope(case, tensors, report)
        elif "row_col" in case:
            axis = position_axis(case["pos_embed_max_size"], case["hidden_size"])
            ours = torch.stack([torch.cat([axis[column], axis[row]]) for row, column in case["row_col"]])
            report.compare("components", ours, tensors["values"], name)


def _check_patches(
    case: dict[str, Any], tensors: dict[str, Tensor], model: Any, config: ModelConfig, report: Report
) -> None:
    name, latent, patch = case["name"], tensors["latent"], config.patch_size
    frames, grid = latent.shape[0], (latent.shape[2] // patch, latent.shape[3] // patch)
    positions = model.embedding.positions(table_places(frames, grid, config.position_table_size)).reshape(
        frames, -1, config.hidden_size
    )
    report.compare("components", positions[0], tensors["pos_embed_crop"], name)
    patches = patchify(latent, patch).reshape(frames, grid[0] * grid[1], -1)
    report.compare("components", model.embedding.noisy_patch(patches) + positions, tensors["noisy_tokens"], name)
    report.compare("components", model.embedding.clean_patch(patches) + positions, tensors["clean_tokens"], name)
    hidden, per_frame = tensors["final_in"], grid[0] * grid[1]
    sequence = Sequence(layout(history_shape(0, frames, grid)), latent, latent[:0], tensors["final_t"])
    row = assemble([sequence], patch, config.position_table_size, 1)
    states = torch.zeros(row.length, 1, config.hidden_size)
    states[row.scored_rows, 0] = hidden.reshape(-1, config.hidden_size)
    tokens = model.head(states, row)
    report.compare("components", tokens.reshape(frames, per_frame, -1), tensors["final_tokens"], name)
    report.compare("components", unpatchify(tokens, frames, grid, patch), tensors["final_latent"], name)


def _check_rope(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    scaling = {"type": "longrope", "long_factor": tensors["long_factor"].tolist()} if "long_factor" in tensors else {}
    extents = {key: case[key] for key in ("max_position_embeddings", "original_max_position_embeddings") if key in case}
    config = ModelConfig(
        hidden_size=case["head_dim"],
        num_attention_heads=1,
        rope_theta=case["rope_theta"],
        rope_scaling=scaling,
        **extents,
    )
    frequencies, factor = inverse_frequencies(config), attention_factor(config)
    turned = angles(tensors["position"], frequencies)[:, 0, 0]
    report.compare("components", frequencies, tensors["inv_freq"], case["name"])
    report.compare("components", turned.cos() * factor, tensors["cos"], case["name"])
    report.compare("components", turned.sin() * factor, tensors["sin"], case["name"])
