"""The model of a checkpoint folder in the released layout: Phi-3 style `config.json` and safetensors (reference README
sections 1 and 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.schema import ModelConfig
from ..errors import UserError
from ..model.parameters import Parameter
from .conditions import condition_of
from .folder import Folder
from .standalone import BACKBONE
from .table import EMBED_TOKENS, POSITION_TABLE, parameters
from .untrusted import show

MOST = {
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "max_position_embeddings": 2**31,
    "original_max_position_embeddings": 2**31,
    "patch_size": 64,
    "in_channels": 4096,
    "pos_embed_max_size": 2**12,
}
"""Largest plausible values; what lies beyond is damage, and would only end in a memory error later."""


def read_model_config(folder: Path) -> tuple[ModelConfig, int]:
    """(model, latent channels) of a released folder.

    What `config.json` has no field for comes from `extra.json` or from the tensors' shapes; where several give it, they
    have to agree. ValueError, one line, for values and shapes that cannot belong to a model.
    """
    return model_of(Folder(folder))


def model_of(folder: Folder) -> tuple[ModelConfig, int]:
    """`read_model_config` of an opened folder."""
    model, channels = sizes_of(folder)
    _check_shapes(folder, model, channels)
    return model, channels


def sizes_of(folder: Folder) -> tuple[ModelConfig, int]:
    """`model_of` before all tensors are held against it: `ingest.check_keys` lists those that do not fit together with
    those that are missing.
    """
    extra = folder.read_json("extra.json") or {}
    patches = folder.shape("x_embedder.proj.weight")
    if len(patches) != 4 or patches[2] != patches[3] or 0 in patches:
        raise UserError(
            f"{folder.path}: x_embedder.proj.weight has shape {list(patches)}; expected [hidden size, "
            "channels, patch, patch]"
        )
    channels = _agreed(folder, extra, "in_channels", patches[1])
    model = backbone(
        folder.config,
        f"{folder.path}/config.json",
        _agreed(folder, extra, "patch_size", patches[2]),
        _table_side(folder, extra),
    )
    return model, channels


def _agreed(folder: Folder, extra: dict[str, Any], field: str, measured: int | None) -> int:
    """A number that config.json, extra.json and the tensors may each give."""
    sources = [
        (name, values[field])
        for name, values in (("config.json", folder.config), ("extra.json", extra))
        if values.get(field) is not None
    ]
    sources = [(name, _natural(value, f"{folder.path}/{name}", field)) for name, value in sources]
    if measured is not None:
        sources.append(("its tensors", _natural(measured, str(folder.path), field)))
    if not sources:
        raise UserError(
            f"{folder.path}/config.json: field {field!r} is missing, and no tensor {POSITION_TABLE} gives it"
        )
    if len({value for _, value in sources}) > 1:
        raise UserError(
            f"{folder.path}: {field} is {', '.join(f'{value} in {name}' for name, value in sources)}; "
            "expected one value"
        )
    return sources[0][1]


def _table_side(folder: Folder, extra: dict[str, Any]) -> int:
    measured = None
    if POSITION_TABLE in folder.keys():
        shape = folder.shape(POSITION_TABLE)
        measured = math.isqrt(shape[1]) if len(shape) == 3 else 0
        if len(shape) != 3 or shape[0] != 1 or measured**2 != shape[1] or not measured:
            raise UserError(
                f"{folder.path}: {POSITION_TABLE} has shape {list(shape)}; expected [1, S*S, hidden size], a "
                "square table"
            )
    return _agreed(folder, extra, "pos_embed_max_size", measured)


def backbone(config: dict[str, Any], where: str, patch_size: int, position_table_size: int) -> ModelConfig:
    """The model of a Phi-3 configuration (a stock one, too); ``where`` names the file in messages."""

    # transformers 5 writes the rotary fields together.
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: rope_parameters is {show(rope)}; expected an object")
    config = {
        **config,
        **{
            key: rope[key]
            for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
            if key in rope
        },
    }

    def natural(field: str, default: str | None = None) -> int:
        value = config.get(field)
        if value is None and default is not None:
            return natural(default)
        if value is None:
            raise UserError(f"{where}: field {field!r} is missing; expected a Phi-3 configuration")
        return _natural(value, where, field)

    width, heads, groups = (
        natural("hidden_size"),
        natural("num_attention_heads"),
        natural("num_key_value_heads", "num_attention_heads"),
    )
    if width % (2 * heads) or width % 4 or heads % groups:
        need = (
            "a hidden size that is a multiple of 4 and of twice the heads, and heads that are a multiple of "
            "key/value heads"
        )
        raise UserError(
            f"{where}: hidden_size {width}, num_attention_heads {heads}, num_key_value_heads {groups}; expected {need}"
        )
    options = _options(config, where)
    gate = {"hidden_act": "silu"} if options["activation"] == "swiglu" else {}
    for field, expected in (gate | {"partial_rotary_factor": 1.0, "head_dim": width // heads}).items():
        if config.get(field) not in (None, expected):
            raise UserError(f"{where}: {field} is {show(config[field])}; only {expected} is supported here")
    scaling = _rope_scaling(rope or config.get("rope_scaling"), where, width // heads // 2)
    if scaling and options["positions"] != "rope":
        raise UserError(f"{where}: positions is {options['positions']}; expected no rope_scaling, which rotates")
    return ModelConfig(
        num_layers=natural("num_hidden_layers"),
        hidden_size=width,
        ffn_hidden_size=natural("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        patch_size=patch_size,
        position_table_size=position_table_size,
        norm_epsilon=_number(config.get("rms_norm_eps"), where, "rms_norm_eps", 0.1),
        rope_theta=_number(config.get("rope_theta"), where, "rope_theta", 1e12),
        rope_scaling=scaling,
        max_position_embeddings=natural("max_position_embeddings"),
        original_max_position_embeddings=natural("original_max_position_embeddings", "max_position_embeddings"),
        **options,
    )


def _options(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What a folder says of the backbone's options (`standalone.BACKBONE`); the defaults where it says nothing."""
    found: dict[str, Any] = {}
    for item in (item for item in fields(ModelConfig) if item.name in BACKBONE):
        value, choices = config.get(item.name), item.metadata["choices"]
        found[item.name] = item.default if value is None else value
        if value is None:
            continue
        if choices and (not isinstance(value, str) or value not in choices):
            raise UserError(f"{where}: {item.name} is {show(value)}; expected one of {', '.join(choices)}")
        if item.name == "biases" and not isinstance(value, bool):
            raise UserError(f"{where}: biases is {show(value)}; expected true or false")
        if item.name == "dropout" and (type(value) not in (int, float) or not 0 <= value < 1):
            raise UserError(f"{where}: dropout is {show(value)}; expected a number from 0 to below 1")
    return found


def _rope_scaling(scaling: Any, where: str, half: int) -> dict[str, Any]:
    """The model's rope_scaling: its two lists of ``half`` (half a head's channels) positive factors, or {}."""
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else scaling
    if not scaling or kind == "default":
        return {}
    if kind not in ("su", "longrope"):
        raise UserError(f"{where}: rope_scaling type {show(kind)} is not supported; expected su or longrope")
    for key in ("long_factor", "short_factor"):
        factors = scaling.get(key)
        if not isinstance(factors, list) or len(factors) != half:
            count = f"{len(factors)} entries" if isinstance(factors, list) else "no list"
            raise UserError(
                f"{where}: rope_scaling.{key} has {count}; expected {half} factors, half of a head's channels"
            )
        for factor in factors:
            _number(factor, where, f"rope_scaling.{key}", 1e9)
    return {"type": "longrope", "long_factor": scaling["long_factor"], "short_factor": scaling["short_factor"]}


def _natural(value: Any, where: str, field: str) -> int:
    if type(value) is not int or not 0 < value <= MOST[field]:
        raise UserError(f"{where}: {field} is {show(value)}; expected a whole number from 1 to {MOST[field]}")
    return value


def _number(value: Any, where: str, field: str, most: float) -> float:
    if type(value) not in (int, float) or not 0 < value <= most:
        raise UserError(f"{where}: {field} is {show(value)}; expected a number above 0, at most {most:g}")
    return float(value)


def _check_shapes(folder: Folder, model: ModelConfig, channels: int) -> None:
    """Configuration and tensors have to be of one model; keys that are missing are a question for
    whoever reads them.
    """
    held = set(folder.keys())
    layers = {key.split(".")[2] for key in held if key.startswith("llm.layers.")}
    if layers and layers != {str(layer) for layer in range(model.num_layers)}:
        raise UserError(
            f"{folder.path}: tensors for {len(layers)} layers, and config.json has num_hidden_layers {model.num_layers}"
        )
    wrong = []
    for entry in parameters(model, condition_of(folder.config, f"{folder.path}/config.json")):
        expected = entry.shape(model, channels)
        if entry.hf in held and entry.hf != EMBED_TOKENS and folder.shape(entry.hf) != expected:
            wrong.append(f"{entry.hf} {list(folder.shape(entry.hf))}, expected {list(expected)}")
    table = folder.shape(EMBED_TOKENS) if EMBED_TOKENS in held else (0, model.hidden_size)
    if len(table) != 2 or table[1] != model.hidden_size:
        wrong.append(f"{EMBED_TOKENS} {list(table)}, expected [vocabulary, {model.hidden_size}]")
    if POSITION_TABLE in held and folder.shape(POSITION_TABLE)[2] != model.hidden_size:
        wrong.append(f"{POSITION_TABLE} {list(folder.shape(POSITION_TABLE))}, expected width {model.hidden_size}")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UserError(f"{folder.path}: tensors that do not fit its config.json: {'; '.join(wrong[:8])}{more}")


def tensor_source(folder: Path, hint_ids: tuple[int, int, int]) -> Callable[[Parameter], Tensor]:
    """What `model.init.load_released` asks for: the released tensor of a table entry; of the text table the rows of
    `<|diffusion|>`, `<img>`, `</img>`.
    """
    tensors = Folder(folder)

    def tensor_of(entry: Parameter) -> Tensor:
        value = tensors.tensor(entry.hf)
        if not value.is_floating_point():
            raise UserError(f"{folder}: tensor {entry.hf} has type {value.dtype}; expected floating-point weights")
        if entry.hf != EMBED_TOKENS:
            return value
        if max(hint_ids) >= len(value):
            raise UserError(
                f"{folder}: {EMBED_TOKENS} has {len(value)} rows, and the hint tokens have ids "
                f"{', '.join(map(str, hint_ids))}"
            )
        return value[list(hint_ids)]

    return tensor_of
