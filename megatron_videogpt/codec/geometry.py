"""Geometry of the codecs, from their small JSON files: what the rest of a configuration is checked against.

No PyTorch here: `check` reads geometries, and importing PyTorch would take most of its time.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..config.sections import find
from ..errors import UserError, shortened
from .options import CodecConfig

TINY_WEIGHTS = Path(__file__).with_name("tiny_codec.safetensors")
TINY_SHAPE = TINY_WEIGHTS.with_suffix(".json")
DIFFUSERS_CLASSES = {"autoencoder_kl": "AutoencoderKL", "autoencoder_kl_wan": "AutoencoderKLWan"}
FSQ, TINY_FSQ, FSQ_CLASS = "fsq", "tiny_fsq", "FSQTokenizer"
FSQ_NAMES = (FSQ, TINY_FSQ)
TINY_FSQ_FOLDER = Path(__file__).with_name("tiny_fsq")
FSQ_LEVELS = (8, 8, 8, 5, 5, 5)
"""Of the published tokenizer of next block prediction: 64,000 codes."""
FSQ_STRIDES = (8, 4)  # `fsq_tokenizer.SPATIAL_STRIDE` and `TEMPORAL_STRIDE`; for the reason below
PIXELS, PIXELS_GEOMETRY = "pixels", (3, 1, 1)
"""The codec that leaves videos as they are; (latent channels, spatial stride, temporal stride)."""
TINY_STRIDE = 8  # `tiny_codec.STRIDE`; that file goes into exported folders as it is, and imports PyTorch

WITHOUT_FOLDER = ("tiny", TINY_FSQ, PIXELS)
"""Names of codecs that need no codec.path."""

PUBLISHED_GEOMETRY = {
    "autoencoder_kl": (4, 8, 1),
    "autoencoder_kl_wan": (16, 8, 4),
    FSQ: (len(FSQ_LEVELS), *FSQ_STRIDES),
}
"""(latent channels, spatial stride, temporal stride) of SDXL's and Wan 2.1's VAE and of the published FSQ tokenizer:
what a configuration is checked with before its codec's folder is there.
"""


class Geometry(Protocol):
    """What data must know of a codec: a `Codec` and a `CodecGeometry` have it (only the former has the fingerprint that
    latents are compared with).
    """

    @property
    def channels(self) -> int: ...
    @property
    def spatial_stride(self) -> int: ...
    @property
    def temporal_stride(self) -> int: ...


@dataclass(frozen=True)
class CodecGeometry:
    """Latent channels, pixels per latent cell side, and frames per latent frame (after the first)."""

    channels: int
    spatial_stride: int
    temporal_stride: int

    def pixel_frames(self, latent_frames: int) -> int:
        """Frames that encode to ``latent_frames``: 1 + stride * (latent_frames - 1)."""
        return 1 + self.temporal_stride * (latent_frames - 1)

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames of ``pixel_frames`` frames; ValueError unless they are 1 + stride * n."""
        if pixel_frames < 1 or (pixel_frames - 1) % self.temporal_stride:
            raise UserError(
                f"{pixel_frames} frames: this codec takes 1 + {self.temporal_stride}n frames; cut or extend the clip"
            )
        return 1 + (pixel_frames - 1) // self.temporal_stride


def codec_geometry(config: CodecConfig) -> CodecGeometry:
    """The codec's geometry from its small JSON file, without its weights; errors as `build_codec`.

    That of another distribution has a module `geometry`: ``geometry(options)`` -> `CodecGeometry`.
    """
    package = outside_package(config)
    if package:
        found: CodecGeometry = importlib.import_module(f"{package}.geometry").geometry(config)
        return found
    if config.name == "tiny":
        return CodecGeometry(json.loads(TINY_SHAPE.read_text(encoding="utf-8"))["channels"], TINY_STRIDE, 1)
    if config.name == PIXELS:
        return CodecGeometry(*PIXELS_GEOMETRY)
    if config.name in FSQ_NAMES:
        return CodecGeometry(len(fsq_levels(config)), *FSQ_STRIDES)
    settings = diffusers_settings(config)
    try:
        if config.name == "autoencoder_kl":
            return CodecGeometry(settings["latent_channels"], 2 ** (len(settings["block_out_channels"]) - 1), 1)
        spatial = 2 ** (len(settings["dim_mult"]) - 1) * (settings.get("patch_size") or 1)
        return CodecGeometry(settings["z_dim"], spatial, 2 ** sum(settings["temperal_downsample"]))
    except KeyError as error:
        raise UserError(
            f"codec.path={config.path}: config.json has no {error}, which {DIFFUSERS_CLASSES[config.name]} needs"
        ) from error


def outside_package(config: CodecConfig) -> str:
    """The package of a codec that another distribution brought; "" of ours, and of names that are not known."""
    section = find("codec", config.name)
    return section.package if isinstance(config, section.options) else ""


def expected_geometry(codec: CodecConfig) -> CodecGeometry:
    """Latent channels and strides of a codec, without loading it; the published ones where its folder is
    not there yet.
    """
    if codec.name in PUBLISHED_GEOMETRY and not (codec.path and Path(codec.path).is_dir()):
        return CodecGeometry(*PUBLISHED_GEOMETRY[codec.name])
    return codec_geometry(codec)


def expected_levels(codec: CodecConfig) -> tuple[int, ...]:
    """Levels of each channel of a tokenizer, without loading it; the published ones where its folder is not there
    yet.
    """
    there = codec.name == TINY_FSQ or (codec.path and Path(codec.path).is_dir())
    return fsq_levels(codec) if there else FSQ_LEVELS


def codec_folder(config: CodecConfig) -> str:
    """codec.path; "" of a codec of another distribution that has no such option."""
    return str(getattr(config, "path", ""))


def fsq_folder(config: CodecConfig) -> Path:
    """The folder of a tokenizer's config.json and weights."""
    return TINY_FSQ_FOLDER if config.name == TINY_FSQ else Path(codec_folder(config))


def fsq_levels(config: CodecConfig) -> tuple[int, ...]:
    """Levels that a tokenizer's config.json says, a number a channel; UserError, one line, where it says none."""
    config = replace(config, path=str(TINY_FSQ_FOLDER)) if config.name == TINY_FSQ else config
    settings = _settings(config, "an FSQ tokenizer")
    found = settings.get("_class_name", FSQ_CLASS)
    if found != FSQ_CLASS:
        raise UserError(
            f"codec.path={config.path}: holds {found!s:.60}, but codec.name={config.name} needs {FSQ_CLASS}"
        )
    levels = settings.get("levels")
    if not isinstance(levels, list) or not levels or any(type(level) is not int or level < 2 for level in levels):
        raise UserError(
            f"codec.path={config.path}: config.json has levels {levels!r:.60}; expected a list of whole numbers from 2 "
            "on, one a channel, such as [8, 8, 8, 5, 5, 5]"
        )
    return tuple(levels)


def diffusers_settings(config: CodecConfig) -> dict[str, Any]:
    """config.json of a local diffusers folder, after checking that it is what ``config.name`` says."""
    if config.name not in DIFFUSERS_CLASSES:
        known = ", ".join(["tiny", PIXELS, *DIFFUSERS_CLASSES, *FSQ_NAMES])
        raise UserError(f"codec.name={config.name!r}: unknown codec; choose {known}")
    wanted = DIFFUSERS_CLASSES[config.name]
    settings = _settings(config, f"a diffusers {wanted}")
    found = settings.get("_class_name", "nothing")
    if found != wanted:
        raise UserError(f"codec.path={config.path}: holds {found}, but codec.name={config.name} needs {wanted}")
    return settings


def _settings(config: CodecConfig, wanted: str) -> dict[str, Any]:
    """config.json of the codec's folder; UserError, one line, that says what is ``wanted``."""
    folder = Path(config.path)
    if not config.path:
        raise UserError(
            f"codec.path is empty: codec {config.name} needs a local folder with config.json and safetensors of "
            f"{wanted}"
        )
    if not folder.is_dir():
        raise UserError(
            f"codec.path={config.path}: no such folder; give the folder that holds the config.json of {wanted} "
            "(nothing is downloaded)"
        )
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "; use its vae sub-folder" if (folder / "vae" / "config.json").exists() else ""
        raise UserError(f"codec.path={config.path}: no config.json in it, so it is not {wanted}{hint}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"codec.path={config.path}: config.json cannot be read ({shortened(error)})") from error
    if not isinstance(settings, dict):
        raise UserError(f"codec.path={config.path}: holds no JSON object, but codec.name={config.name} needs {wanted}")
    return settings
