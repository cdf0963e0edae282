"""A published transformer: its settings as recorded and exported folders have them, and its tensors.

`objective/released.py` says what its names mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...codec.geometry import expected_geometry, expected_levels
from ...codec.options import CodecConfig
from ...condition.options import IDS, NONE
from ...config.derived import frame_side
from ...config.schema import Config, ModelConfig
from ...errors import UserError
from ...model.parameters import Parameter
from ..released import TOKENIZER as CODEC
from ..released import Shapes, Start
from .card import card
from .options import NAME, NextBlockOptions
from .parameters import APART, JOINT, START, published
from .vocabulary import GIVEN, HYBRID, LAYOUTS, UNCONDITIONAL, Vocabulary, vocabulary_of

__all__ = ["CODEC", "START", "card"]

MODEL_TYPE = "nbp"
AUTO = {
    "architectures": ["NextBlockModel"],
    "auto_map": {
        "AutoConfig": "configuration_nextblock.NextBlockConfig",
        "AutoModel": "modeling_nextblock.NextBlockModel",
    },
}
HUB = "next_block"
ENTRY = "state_dict"
BUFFERS = (f"{START}uncond_embedding",)
"""The model has no parameter of it where it has no rows."""
COMPUTED: tuple[str, ...] = ()
STARTS: dict[str, Start] = {}
SIZES = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_size": "ffn_hidden_size",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
"""Published name of a size -> ours."""
PUBLISHED = ModelConfig(patch_size=1, norm="layer", activation="gelu", biases=True, positions="learned")
"""What the published backbone, like GPT-2's, does not say of itself."""
BACKBONE = ("norm", "activation", "biases", "positions", "num_query_groups", "rope_theta", "init_std")
"""Options that `config.json` has under our names where they are not the published ones."""
HEADS = {1536: 16, 2048: 32, 3072: 32}
"""Of the published models, by their width: their files do not say."""
KINDS = ("none", "label", "text")
"""What may stand before a video, by its published name."""
KINDS_OF = {"class": "label"}
"""Ours -> published, where they differ."""
MOST = 2**24
"""Largest plausible number; what lies beyond is damage."""


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """The backbone in these sizes, where nothing else is said the published one."""
    said = {name: settings[name] for name in BACKBONE if name in settings}
    sizes = {ours: settings[name] for name, ours in SIZES.items()}
    return replace(PUBLISHED, norm_epsilon=settings.get("layer_norm_eps", 1e-5), **sizes, **said)


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


def channels_of(settings: Mapping[str, Any]) -> int:
    """See `Released`: a network of ids knows nothing of latents."""
    return 0


def buffers(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """See `Released`."""
    return {}


def pieces(entry: Parameter, model: ModelConfig, channels: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """See `Released`."""
    keys, shape = published(entry.hf), entry.shape(model, channels)
    rows = [count * model.head_dim for count in (model.num_attention_heads, model.kv_heads, model.kv_heads)]
    return ((keys[0], shape),) if len(keys) == 1 else tuple((key, (n, *shape[1:])) for key, n in zip(keys, rows))


def settings_of(config: Config, channels: int) -> dict[str, Any]:
    """See `Released`: those of published checkpoints, and what else its backbone, blocks, classes and
    videos need.
    """
    model, options, condition, vocabulary = config.model, config.objective, config.condition, vocabulary_of(config)
    stride, side = expected_geometry(config.codec).spatial_stride, frame_side(config)
    found = {
        "model_type": MODEL_TYPE,
        "mode": options.layout,
        "block": options.block,
        "codes": vocabulary.codes,
        "text_ids": vocabulary.conditions,
        "prefix": condition.most_tokens,
        "prefix_kind": KINDS_OF.get(condition.kind, condition.kind),
        "vocab_size": vocabulary.size,
        **{name: getattr(model, ours) for name, ours in SIZES.items()},
        "layer_norm_eps": model.norm_epsilon,
        "latent": [config.data.frames, side // stride, side // stride],
    }
    if options.block_shape:
        found["block_shape"] = list(options.block_shape)
    if condition.kind == "class":
        found["class_names"] = list(condition.classes)
    # The published value, and not our default, is what goes without saying.
    return found | {name: getattr(model, name) for name in BACKBONE if getattr(model, name) != getattr(PUBLISHED, name)}


def config_of(settings: Mapping[str, Any], config: Config, where: str) -> Config:
    """See `Released`: with its model, objective and condition."""
    for name in (*SIZES, "block", "codes", "vocab_size"):
        _natural(settings, name, where)
    mode, kind, named = settings.get("mode"), settings.get("prefix_kind", "none"), settings.get("class_names")
    if mode not in LAYOUTS:
        raise UserError(f"{where}: mode is {mode!r:.40}; expected one of {', '.join(LAYOUTS)}")
    if kind not in KINDS:
        raise UserError(f"{where}: prefix_kind is {kind!r:.40}; expected one of {', '.join(KINDS)}")
    count = _natural(settings, "text_ids", where) if kind == "label" else 0
    names = [str(number) for number in range(count)] if named is None else named
    if not isinstance(names, list) or len(names) != count or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{where}: class_names is {names!r:.60}; expected {count} names, as text_ids says")
    shape = settings.get("block_shape", [])
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise UserError(f"{where}: block_shape is {shape!r:.40}; expected three whole numbers, or none")
    condition = replace(config.condition, kind="class", classes=tuple(names)) if count else NONE
    if kind == "text":
        # Where the tokenizer's file lies is for whoever gives texts to say.
        width, tokens = (_natural(settings, name, where) for name in ("text_ids", "prefix"))
        condition = replace(config.condition, kind="text", encoder=IDS, width=width, tokens=tokens)
    objective = NextBlockOptions(NAME, mode, settings["block"], tuple(shape))
    said = {name: settings[name] for name in BACKBONE if name in settings}
    for item in (item for item in fields(ModelConfig) if item.name in said):
        value, choices = said[item.name], item.metadata["choices"]
        if choices and value not in choices or type(value) not in (type(item.default), int):
            raise UserError(f"{where}: {item.name} is {value!r:.40}; expected such as {item.default!r}")
    model = replace(model_of(settings), dropout=config.model.dropout)
    config = replace(config, model=model, objective=objective, condition=condition)
    _check_vocabulary(settings, config, where)
    return config


def _check_vocabulary(settings: Mapping[str, Any], config: Config, where: str) -> None:
    vocabulary = vocabulary_of(config)
    if settings["codes"] != vocabulary.codes:
        levels = " ".join(map(str, expected_levels(config.codec)))
        raise UserError(
            f"{where}: a vocabulary of {settings['codes']} codes, and its tokenizer has {vocabulary.codes} (levels "
            f"{levels}); give the folder of the tokenizer that it was trained with (--vae)"
        )
    if settings["vocab_size"] != vocabulary.size:
        raise UserError(
            f"{where}: a table of {settings['vocab_size']} ids; mode {vocabulary.layout} with {vocabulary.codes} "
            f"codes, blocks of {vocabulary.block} and {vocabulary.conditions} ids of conditions makes {vocabulary.size}"
        )


def _natural(settings: Mapping[str, Any], name: str, where: str) -> int:
    value = settings.get(name)
    if type(value) is not int or not 0 < value <= MOST:
        raise UserError(f"{where}: {name} is {value!r:.40}; expected a whole number from 1 to {MOST}")
    return value


def guessed(shapes: Shapes, codec: CodecConfig, told: Mapping[str, str], where: str) -> dict[str, Any]:
    """See `Released`; told: mode, block (16 where not said) and num_heads (of a published width)."""
    codes = math.prod(expected_levels(codec))
    try:
        words, width = shapes[f"{START}tok_emb.weight"]
        (_, positions, _), (inner, _) = shapes[f"{START}pos_emb"], shapes[f"{START}blocks.0.mlp.0.weight"]
    except (KeyError, ValueError):
        raise UserError(
            f"{where}: holds no transformer of next block prediction: expected keys such as {START}tok_emb.weight, "
            f"found {next(iter(sorted(shapes)), 'nothing')!r:.80}"
        ) from None
    unknown = sorted(told.keys() - {"mode", "block", "num_heads"})
    if unknown:
        raise UserError(f"--published {unknown[0]}: unknown; expected mode, block or num_heads")
    numbers = {name: value for name, value in told.items() if name != "mode"}
    if not all(value.isdigit() and int(value) for value in numbers.values()):
        raise UserError(f"--published {numbers}: expected whole numbers from 1")
    heads = int(told.get("num_heads", HEADS.get(width, 0)))
    if not heads or width % heads:
        raise UserError(f"{where}: width {width}; say into how many heads it divides: --published num_heads=N")
    block, prefix = int(told.get("block", 16)), shapes.get(BUFFERS[0], (0,))[0]
    mode = told.get("mode", UNCONDITIONAL if words == codes else HYBRID)
    texts = words - codes - (block if mode == HYBRID else 0) - (mode == GIVEN)
    if texts < 0 or (texts > 0) != (prefix > 0):
        raise UserError(
            f"{where}: a table of {words} ids does not fit mode {mode} with blocks of {block} and a tokenizer of "
            f"{codes} codes ({prefix} tokens stand before a video, and {texts} ids are left for them); say otherwise "
            "with --published mode=... block=..., or give its tokenizer with --vae"
        )
    layers = {key.split(".")[2] for key in shapes if key.startswith(f"{START}blocks.")}
    return {
        "model_type": MODEL_TYPE,
        "mode": mode,
        "block": block,
        "codes": codes,
        "text_ids": texts,
        "prefix": prefix,
        "prefix_kind": {0: "none", 1: "label"}.get(prefix, "text"),
        "vocab_size": words,
        "max_positions": positions,
        "num_layers": len(layers),
        "num_heads": heads,
        "hidden_size": width,
        "ffn_size": inner,
        "layer_norm_eps": 1e-5,
    }
