"""Configurations that a Hugging Face folder holds: its VAE, and how its model was trained."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..codec.geometry import DIFFUSERS_CLASSES, TINY_WEIGHTS
from ..codec.options import CodecConfig
from ..condition.folder import text_width
from ..config.load import config_from_dict
from ..config.schema import Config, TrainConfig
from ..errors import UserError
from .conditions import condition_of
from .folder import Folder
from .ingest import STOCK_PATCH, STOCK_TABLE, is_stock
from .released import backbone, sizes_of
from .untrusted import Stored, read_header, read_object, read_tensor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODECS = {**{kind: name for name, kind in DIFFUSERS_CLASSES.items()}, "TinyAutoencoder": "tiny"}
TRAINING = "videogpt_config.toml"


def codec_of(vae: Path | None, name: str = "") -> CodecConfig:
    """The codec section for a VAE folder of the kinds that exported folders hold; without one, of a codec that is not
    known yet (an empty path).
    """
    if vae is None:
        return CodecConfig(name=name or "autoencoder_kl")
    kind = read_object(vae / "config.json").get("_class_name")
    found = CODECS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise UserError(f"{vae}/config.json: _class_name is {str(kind)[:60]!r}; expected one of {', '.join(CODECS)}")
    if name and name != found:
        raise UserError(f"--codec {name}: {vae} holds {found}; leave out one of the two")
    if found == "tiny":
        _check_tiny(vae)
        return CodecConfig(name="tiny")
    return CodecConfig(name=found, path=str(vae))


def _check_tiny(vae: Path) -> None:
    """ValueError unless it is the codec of this release, which is what ``codec.name="tiny"`` loads."""
    theirs, ours = vae / "diffusion_pytorch_model.safetensors", read_header(TINY_WEIGHTS)
    held = read_header(theirs)
    same = held.keys() == ours.keys() and all(_same(held[key], ours[key]) for key in ours)
    if not same:
        raise UserError(
            f"{theirs}: another tiny codec than this release's; use the release of this package that wrote it"
        )


def _same(one: Stored, other: Stored) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(read_tensor(one), read_tensor(other))


def folder_config(folder: Path, codec: CodecConfig | None = None) -> Config:
    """The whole configuration for a folder: the one it was trained with where it says (`videogpt_config.toml`),
    defaults elsewhere, with the model of config.json and the codec of vae/.
    """
    opened = Folder(folder)
    config = training_config(opened)
    found = codec or _codec_beside(folder, config)
    if is_stock(opened):
        model = backbone(opened.config, f"{folder}/config.json", STOCK_PATCH, STOCK_TABLE)
    else:
        model, _ = sizes_of(opened)
    # Heads in one group each is what 0 stands for.
    groups = 0 if model.num_query_groups == model.num_attention_heads else model.num_query_groups
    condition = condition_of(opened.config, f"{folder}/config.json", config.condition)
    return replace(
        config,
        model=replace(model, num_query_groups=groups),
        codec=replace(found, batch_size=config.codec.batch_size),
        condition=condition,
    )


def _codec_beside(folder: Path, config: Config) -> CodecConfig:
    """That of vae/; a folder for this package alone may leave out the tiny codec, which comes with it."""
    vae = folder / "vae"
    if os.path.lexists(vae / "config.json"):
        return codec_of(vae)
    return CodecConfig(name="tiny") if config.codec.name == "tiny" and (folder / TRAINING).is_file() else codec_of(None)


def training_config(folder: Folder) -> Config:
    """What `videogpt_config.toml` of a folder says; defaults where there is none."""
    path = folder.path / TRAINING
    if not path.is_file() or path.is_symlink():
        return Config()
    try:
        # Not `load_config`: a file from outside may not name others with base = "...".
        return without_paths(config_from_dict(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({' '.join(str(error).split())[:100]})") from None


def without_paths(config: Config) -> Config:
    """A configuration that names no file or folder: a published one tells nothing about its author's machine, and a
    foreign one points to nothing on ours.
    """
    # Classes that it names would be imported elsewhere.
    train = replace(config.train, output=TrainConfig().output, init_from="", callbacks=())
    condition = config.condition
    if condition.kind == "text":
        condition = replace(condition, width=text_width(condition), encoder_path="")
    return replace(
        config,
        condition=condition,
        data=replace(config.data, path="", mixture={}, cache=""),
        codec=replace(config.codec, path=""),
        train=train,
    )
