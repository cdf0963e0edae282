"""diffusers' VAEs as codecs: from local folders only and from safetensors only; nothing is downloaded and no pickle is
read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UserError
from .base import batched, check_video, fingerprint_of
from .geometry import DIFFUSERS_CLASSES, codec_geometry, one_line
from .options import CodecConfig


class KLCodec:
    """Any diffusers AutoencoderKL (SDXL's in the paper): frame by frame, (z - shift_factor) * scaling_factor."""

    name = "autoencoder_kl"

    def __init__(self, config: CodecConfig, settings: dict[str, Any]) -> None:
        self.model, self.fingerprint = _load_diffusers(config, settings)
        geometry = codec_geometry(config)
        self.channels, self.spatial_stride, self.temporal_stride = geometry.channels, geometry.spatial_stride, 1
        self.scaling = float(settings.get("scaling_factor") or 0.18215)  # diffusers' own default
        self.shift = float(settings.get("shift_factor") or 0.0)
        self.batch_size = config.batch_size

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; the posterior's mean and log-variance."""
        check_video(video, self.spatial_stride)
        moments = batched(self._moments, video, self.batch_size, next(self.model.parameters()))
        mean, logvar = moments.chunk(2, dim=1)
        return (mean - self.shift) * self.scaling, logvar + 2 * math.log(self.scaling)

    def _moments(self, frames: Tensor) -> Tensor:
        posterior = self.model.encode(frames).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        raw = latents / self.scaling + self.shift
        return batched(
            lambda z: self.model.decode(z).sample, raw, self.batch_size, next(self.model.parameters())
        ).clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KLCodec:
        """See `Codec.to`."""
        self.model.to(device, dtype)
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
        self.model, self.fingerprint = _load_diffusers(config, settings)
        self.geometry = codec_geometry(config)
        self.channels, self.spatial_stride = self.geometry.channels, self.geometry.spatial_stride
        self.temporal_stride = self.geometry.temporal_stride
        for key in ("latents_mean", "latents_std"):
            if len(settings.get(key) or ()) != self.channels:
                raise UserError(
                    f"codec.path={config.path}: config.json needs {key} with {self.channels} values (one a "
                    "latent channel)"
                )
        self.mean = torch.tensor(settings["latents_mean"]).view(-1, 1, 1)
        self.std = torch.tensor(settings["latents_std"]).view(-1, 1, 1)

    @torch.no_grad()
    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; ValueError unless there are 1 + stride * n frames."""
        check_video(video, self.spatial_stride)
        self.geometry.latent_frames(len(video))
        like = next(self.model.parameters())
        posterior = self.model.encode(video.to(like).transpose(0, 1)[None]).latent_dist
        mean, logvar = (moment[0].transpose(0, 1).float() for moment in (posterior.mean, posterior.logvar))
        return (mean - self.mean.to(mean)) / self.std.to(mean), logvar - 2 * self.std.to(mean).log()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        like = next(self.model.parameters())
        raw = latents.float() * self.std.to(latents.device) + self.mean.to(latents.device)
        video = self.model.decode(raw.to(like).transpose(0, 1)[None]).sample
        return video[0].transpose(0, 1).float().clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> WanCodec:
        """See `Codec.to`."""
        self.model.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return next(self.model.parameters()).device


def _load_diffusers(config: CodecConfig, settings: dict[str, Any]) -> tuple[Any, str]:
    """(model in evaluation mode, fingerprint)."""
    folder = Path(config.path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"codec.path={config.path}: no .safetensors file in it; pickled weights (.bin, .pt) are never "
            "loaded, so convert them first"
        )
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"codec.name={config.name} needs the diffusers package: pip install diffusers") from error
    try:
        kind = getattr(diffusers, DIFFUSERS_CLASSES[config.name])
        # diffusers fills missing weights with random numbers and only warns, hence the loading report.
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(
            f"codec.path={config.path}: weights do not load into its {DIFFUSERS_CLASSES[config.name]} "
            f"({one_line(error)})"
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"codec.path={config.path}: {len(report['missing_keys'])} weights are missing, "
            f"{sorted(report['missing_keys'])[0]} for one"
        )
    description = {key: value for key, value in settings.items() if not key.startswith("_")}
    return model.eval().requires_grad_(False), fingerprint_of(json.dumps(description, sort_keys=True), weights)
