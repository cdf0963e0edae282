"""Published networks: `config.json` as a model and a variant, state dicts by the table's keys and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ....config.schema import ModelConfig
from ....errors import UserError
from ....model.factorised import NORM_EPSILON
from ....model.parameters import Parameter
from ....model.patches import sine_table
from .variant import CAUSAL, CYCLIC, FIXED, FULL, PARTIAL, Variant

TIMES = {True: CAUSAL, False: FULL, "partial": PARTIAL}
POSITIONS = {"cyclic": CYCLIC, None: FIXED}
COMPUTED = ("pos_embed", "pos_embed_temporal")
"""Published tensors that follow from the sizes."""
UNREAD = ("bov_token",)
"""Published tensors that nothing reads."""


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """The layers in these sizes."""
    width = settings["hidden_size"]
    return ModelConfig(
        num_layers=settings["depth"],
        hidden_size=width,
        ffn_hidden_size=int(width * settings["mlp_ratio"]),
        num_attention_heads=settings["num_heads"],
        patch_size=settings["patch_size"][-1],
        norm="layer",
        norm_epsilon=NORM_EPSILON,
        activation="gelu_tanh",
        biases=True,
        positions="none",
    )


def variant_of(settings: Mapping[str, Any], where: str) -> Variant:
    """Everything else of a `config.json`; UserError, one line that begins with `where`, for what is not supported."""
    mode, causal, enhance = (settings[name] for name in ("relative_tpe_mode", "is_causal", "spatial_attn_enhance"))
    if mode not in POSITIONS:
        raise UserError(f"{where}: relative_tpe_mode is {mode!r}; expected cyclic or null")
    if causal not in TIMES:
        raise UserError(f"{where}: is_causal is {causal!r}; expected true, false or partial")
    found = re.fullmatch(r"prev_frames_([1-9]\d{0,3})|first_frame", enhance or "first_frame")
    if found is None:
        raise UserError(f"{where}: spatial_attn_enhance is {enhance!r}; expected null, prev_frames_N or first_frame")
    count = int(found[1] or 0)
    return Variant(
        enhance="none" if enhance is None else "prev_frames" if count else "first_frame",
        enhance_frames=count,
        mask_channel=settings["temp_extra_in_channels"] > 0,
        time=TIMES[causal],
        positions=POSITIONS[mode],
        places=settings["max_tpe_len"],
        space_scale=settings["space_scale"],
        time_scale=settings["time_scale"],
        text_width=settings["caption_channels"],
        text_tokens=settings["model_max_length"] if settings["caption_channels"] else 0,
    )


def settings_of(
    model: ModelConfig, variant: Variant, channels: int, size: tuple[int, int], dropout: float = 0.1
) -> dict[str, Any]:
    """Fields of `config.json`; size: of the latents; dropout: how often training drops a text."""
    enhance = f"prev_frames_{variant.enhance_frames}" if variant.enhance == "prev_frames" else variant.enhance
    return {
        "input_size": list(size),
        "in_channels": channels,
        "patch_size": [1, model.patch_size, model.patch_size],
        "hidden_size": model.hidden_size,
        "depth": model.num_layers,
        "num_heads": model.num_attention_heads,
        "mlp_ratio": _ratio(model),
        "class_dropout_prob": dropout,
        "pred_sigma": True,
        "caption_channels": variant.text_width,
        "model_max_length": variant.text_tokens,
        "space_scale": variant.space_scale,
        "time_scale": variant.time_scale,
        "temp_extra_in_channels": int(variant.mask_channel),
        "max_tpe_len": variant.places,
        "relative_tpe_mode": next(theirs for theirs, ours in POSITIONS.items() if ours == variant.positions),
        "spatial_attn_enhance": None if enhance == "none" else enhance,
        "is_causal": next(theirs for theirs, ours in TIMES.items() if ours == variant.time),
    }


def _ratio(model: ModelConfig) -> float:
    """Of which `model_of` makes the inner width again, whatever the quotient is rounded to."""
    width, inner = model.hidden_size, model.ffn_hidden_size
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def open_folder(
    folder: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[ModelConfig, Variant, dict[str, Any], Callable[[Parameter], Tensor]]:
    """(model, variant, config.json, tensors by parameter) of a folder with `config.json` and `model.safetensors`;
    overrides: fields of config.json that are others, with which some tensors go unread.
    """
    text = (folder / "config.json").read_text(encoding="utf-8")
    settings = json.loads(text) | dict(overrides or {})
    tensors = load_file(folder / "model.safetensors")
    return model_of(settings), variant_of(settings, str(folder)), settings, lambda entry: tensors[entry.hf]


def computed_tables(model: ModelConfig, variant: Variant, size: tuple[int, int]) -> dict[str, Tensor]:
    """`COMPUTED` of latents of this size, float32 (reference README section 3)."""
    rows, columns = (side // model.patch_size for side in size)
    width = model.hidden_size
    axes = [sine_table(torch.arange(n, dtype=torch.float32) / variant.space_scale, width // 2) for n in (columns, rows)]
    across, down = axes[0].repeat(rows, 1), axes[1].repeat_interleave(columns, dim=0)
    places = torch.arange(variant.places, dtype=torch.float32) / variant.time_scale
    tables = torch.cat([across, down], dim=1), sine_table(places, width)
    return dict(zip(COMPUTED, (table.unsqueeze(0) for table in tables)))
