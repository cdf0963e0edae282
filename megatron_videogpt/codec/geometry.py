"""Geometry of the codecs, from their small JSON files: what the rest of a configuration is checked against.

No PyTorch here: `check` reads geometries, and importing PyTorch would take most of its time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError, shortened
from .options import CodecConfig

TINY_WEIGHTS = Path(__file__).with_name("tiny_codec.safetensors")
TINY_SHAPE = TINY_WEIGHTS.with_suffix(".json")
DIFFUSERS_CLASSES = {"autoencoder_kl": "AutoencoderKL", "autoencoder_kl_wan": "AutoencoderKLWan"}
TINY_STRIDE = 8  # `tiny_codec.STRIDE`; that file goes into exported folders as it is, and imports PyTorch

PUBLISHED_GEOMETRY = {"autoencoder_kl": (4, 8, 1), "autoencoder_kl_wan": (16, 8, 4)}
"""(latent channels, spatial stride, temporal stride) of SDXL's and Wan 2.1's VAE: what a configuration is checked with
before its VAE is there.
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
    """The codec's geometry from its small JSON file, without its weights; errors as `build_codec`."""
    if config.name == "tiny":
        return CodecGeometry(json.loads(TINY_SHAPE.read_text(encoding="utf-8"))["channels"], TINY_STRIDE, 1)
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


def expected_geometry(codec: CodecConfig) -> CodecGeometry:
    """Latent channels and strides of a codec, without loading it; the published ones where its folder is
    not there yet.
    """
    if codec.name in PUBLISHED_GEOMETRY and not (codec.path and Path(codec.path).is_dir()):
        return CodecGeometry(*PUBLISHED_GEOMETRY[codec.name])
    return codec_geometry(codec)


def diffusers_settings(config: CodecConfig) -> dict[str, Any]:
    """config.json of a local diffusers folder, after checking that it is what ``config.name`` says."""
    if config.name not in DIFFUSERS_CLASSES:
        raise UserError(f"codec.name={config.name!r}: unknown codec; choose tiny, {', '.join(DIFFUSERS_CLASSES)}")
    wanted, folder = DIFFUSERS_CLASSES[config.name], Path(config.path)
    if not config.path:
        raise UserError(
            f"codec.path is empty: codec {config.name} needs a local folder with config.json and safetensors "
            f"of a diffusers {wanted}"
        )
    if not folder.is_dir():
        raise UserError(
            f"codec.path={config.path}: no such folder; give the folder that holds the {wanted}'s config.json "
            "(nothing is downloaded)"
        )
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "; use its vae sub-folder" if (folder / "vae" / "config.json").exists() else ""
        raise UserError(
            f"codec.path={config.path}: no config.json in it, so it is not a diffusers {wanted}{hint}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"codec.path={config.path}: config.json cannot be read ({shortened(error)})") from error
    found = settings.get("_class_name", "nothing") if isinstance(settings, dict) else "no JSON object"
    if found != wanted:
        raise UserError(f"codec.path={config.path}: holds {found}, but codec.name={config.name} needs {wanted}")
    return settings
