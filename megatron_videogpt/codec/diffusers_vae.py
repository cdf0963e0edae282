"""diffusers' VAEs as codecs: from local folders only and from safetensors only; nothing is downloaded and no pickle is
read.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UserError, shortened
from ..hub.common.vae_videogpt import SCALING_KEYS, STATISTICS, Scaling, scaling_of, weight_files
from .base import Identity, batched, check_video, encoded, fingerprint_of
from .geometry import DIFFUSERS_CLASSES, codec_geometry
from .options import CodecConfig


class KLCodec:
    """Any diffusers AutoencoderKL (SDXL's in the paper), frame by frame; latents are scaled as `scaling_of` says."""

    name = "autoencoder_kl"
    frame_by_frame = True

    def __init__(self, config: CodecConfig, settings: dict[str, Any]) -> None:
        geometry = codec_geometry(config)
        self.channels, self.spatial_stride, self.temporal_stride = geometry.channels, geometry.spatial_stride, 1
        self.scaling = _scaling(config, settings, geometry.channels)
        self.model, self.identity = _load_diffusers(config, settings)
        self.fingerprint = self.identity.fingerprint
        self.batch_size = config.batch_size

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; the posterior's mean and log-variance."""
        check_video(video, self.spatial_stride)
        moments = encoded(self._moments, video, self.batch_size, next(self.model.parameters()))
        mean, logvar = moments.chunk(2, dim=1)
        return self.scaling.scaled(mean), self.scaling.scaled_logvar(logvar)

    def _moments(self, frames: Tensor) -> Tensor:
        posterior = self.model.encode(frames).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        raw = self.scaling.raw(latents)
        return batched(
            lambda z: self.model.decode(z).sample, raw, self.batch_size, next(self.model.parameters())
        ).clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KLCodec:
        """See `Codec.to`."""
        self.model.to(device, dtype)
        self.scaling = self.scaling.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return next(self.model.parameters()).device


class WanCodec:
    """diffusers' AutoencoderKLWan: 1 + 4n frames to 1 + n latent frames, (z - latents_mean) / latents_std per channel.

    The model is causal in time and walks over its frames itself, so a video is one call whatever ``codec.batch_size``
    is.
    """

    name = "autoencoder_kl_wan"

    def __init__(self, config: CodecConfig, settings: dict[str, Any]) -> None:
        self.geometry = codec_geometry(config)
        self.channels, self.spatial_stride = self.geometry.channels, self.geometry.spatial_stride
        self.temporal_stride = self.geometry.temporal_stride
        self.scaling = _scaling(config, settings, self.channels)
        self.model, self.identity = _load_diffusers(config, settings)
        self.fingerprint = self.identity.fingerprint

    @torch.no_grad()
    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; ValueError unless there are 1 + stride * n frames."""
        check_video(video, self.spatial_stride)
        self.geometry.latent_frames(len(video))
        like = next(self.model.parameters())
        posterior = self.model.encode(video.to(like).transpose(0, 1)[None]).latent_dist
        mean, logvar = (moment[0].transpose(0, 1).float() for moment in (posterior.mean, posterior.logvar))
        return self.scaling.scaled(mean), self.scaling.scaled_logvar(logvar)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        like = next(self.model.parameters())
        raw = self.scaling.raw(latents.float())
        video = self.model.decode(raw.to(like).transpose(0, 1)[None]).sample
        return video[0].transpose(0, 1).float().clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> WanCodec:
        """See `Codec.to`."""
        self.model.to(device, dtype)
        self.scaling = self.scaling.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return next(self.model.parameters()).device


def ignored_before(settings: dict[str, Any]) -> bool:
    """Whether a VAE's settings (config.json) ask for what earlier releases ignored: an AutoencoderKL's latents_mean and
    latents_std.
    """
    return settings.get("_class_name") == "AutoencoderKL" and any(settings.get(key) is not None for key in STATISTICS)


def _scaling(config: CodecConfig, settings: dict[str, Any], channels: int) -> Scaling:
    try:
        return scaling_of(settings, DIFFUSERS_CLASSES[config.name], channels, f"codec.path={config.path}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _load_diffusers(config: CodecConfig, settings: dict[str, Any]) -> tuple[Any, Identity]:
    """(model in evaluation mode, identity)."""
    folder = Path(config.path)
    try:
        weights = weight_files(folder)
    except ValueError as error:
        raise UserError(f"codec.path={error}") from error
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"codec.name={config.name} needs the diffusers package: pip install diffusers") from error
    kind = getattr(diffusers, DIFFUSERS_CLASSES[config.name])
    try:
        # diffusers fills missing weights with random numbers and only warns, hence the loading report.
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"codec.path={config.path}: weights do not load into its {DIFFUSERS_CLASSES[config.name]} "
            f"({shortened(error)})"
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"codec.path={config.path}: {len(report['missing_keys'])} weights are missing, "
            f"{sorted(report['missing_keys'])[0]} for one"
        )
    known = {*inspect.signature(kind.__init__).parameters, *SCALING_KEYS}
    return model.eval().requires_grad_(False), _identity(folder, settings, known, weights)


def _identity(folder: Path, settings: dict[str, Any], known: set[str], weights: list[Path]) -> Identity:
    """Of the settings that are read (``known``) and the files that are read.

    Earlier releases took all settings, and all safetensors of the folder; where there is nothing beside what is read,
    that is the same.
    """
    every = {key: value for key, value in settings.items() if not key.startswith("_")}
    read = {key: value for key, value in every.items() if key in known}
    outdated = ignored_before(settings)
    # The key cannot be one of the settings: those with an underscore are left out.
    text = json.dumps(read | ({"_normalised": list(STATISTICS)} if outdated else {}), sort_keys=True)
    present = sorted(folder.glob("*.safetensors"))
    before = dict.fromkeys(
        (json.dumps(description, sort_keys=True), tuple(files))
        for description in (every, read)
        for files in (weights, present)
    )
    before.pop((text, tuple(weights)), None)
    reason = "the VAE is the same, but earlier releases ignored its latents_mean and latents_std" if outdated else ""
    return Identity(fingerprint_of(text, weights), tuple(before), reason)
