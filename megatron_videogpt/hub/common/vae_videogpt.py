"""What the folder and the settings of a diffusers VAE say: which files hold its weights, and how its latents are scaled
for a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE_INDEX = f"{VAE_WEIGHTS}.index.json"
STATISTICS = ("latents_mean", "latents_std")
SCALING_KEYS = ("scaling_factor", "shift_factor", *STATISTICS)
DEFAULT_FACTOR = 0.18215  # what AutoencoderKL's constructor takes where config.json has no scaling_factor


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that diffusers reads of a local folder (`ModelMixin.from_pretrained` with safetensors and no
    variant), in its order: the shards that an index names, else the one file.  Others, such as copies in half
    precision, are not read.

    Raises:
        ValueError: one line: no such file, or an index that names other things than safetensors files of this folder.
    """
    if (folder / VAE_INDEX).is_file():
        return [_shard(folder, name) for name in _shard_names(folder)]
    if (folder / VAE_WEIGHTS).is_file():
        return [folder / VAE_WEIGHTS]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    beside = f"; {others[0]} is not read: rename it if it is what you mean" if others else ""
    raise ValueError(
        f"{folder}: no {VAE_WEIGHTS} in it, nor {VAE_INDEX} with its shards (pickled weights are never loaded, so "
        f"convert them first){beside}"
    )


def _shard_names(folder: Path) -> list[Any]:
    try:
        names = sorted(set(json.loads((folder / VAE_INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{folder}: {VAE_INDEX} cannot be read ({type(error).__name__}: {reason}); expected weight_map, from "
            "tensors to the names of files"
        ) from error
    if not names:
        raise ValueError(
            f"{folder}: {VAE_INDEX} names no file; expected weight_map, from tensors to the names of files"
        )
    return names


def _shard(folder: Path, name: Any) -> Path:
    # diffusers unpickles a shard of any other ending.
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(
            f"{folder}: {VAE_INDEX} names {name!r:.100}; expected the plain name of a .safetensors file of this folder"
        )
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: no {name} in it, which {VAE_INDEX} names; copy all shards, or mend the index")
    return folder / name


@dataclass(frozen=True)
class Scaling:
    """Between a VAE's latents z and those that a model sees, (z - shift) * factor / std.

    shift, std: float32 [C, 1, 1], a value a channel; factor: of all channels.
    """

    shift: Tensor
    std: Tensor
    factor: float

    def to(self, device: torch.device | str) -> Scaling:
        """The same on a device, so that nothing is copied there at each use."""
        return Scaling(self.shift.to(device), self.std.to(device), self.factor)

    def scaled(self, z: Tensor) -> Tensor:
        """The VAE's latents [..., C, h, w] as a model sees them."""
        return (z - self.shift.to(z.device)) * self.factor / self.std.to(z.device)

    def raw(self, latents: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return latents * self.std.to(latents.device) / self.factor + self.shift.to(latents.device)

    def scaled_logvar(self, logvar: Tensor) -> Tensor:
        """Log-variances of `scaled` latents, from those of the VAE's."""
        return logvar + 2 * (math.log(self.factor) - self.std.log()).to(logvar.device)


def scaling_of(settings: Mapping[str, Any], kind: str, channels: int, where: str) -> Scaling:
    """The scaling that a VAE's settings ask for, as in diffusers' pipelines.

    AutoencoderKL: (z - latents_mean) * scaling_factor / latents_std where it has both (StableDiffusionXLPipeline and
    its siblings), else (z - shift_factor) * scaling_factor (FluxPipeline; without a shift all others).
    AutoencoderKLWan: (z - latents_mean) / latents_std (WanPipeline).

    Args:
        settings: config.json, or the `config` of a loaded VAE; kind: its class; channels: of its latents.
        where: what messages begin with.

    Raises:
        ValueError: one line: a value that is missing, not finite, or not positive where it must be; lists of another
            length; one of the two lists alone, or both beside a shift_factor, for which diffusers has no formula.
    """
    factor, shift = 1.0, 0.0
    if kind != "AutoencoderKLWan":
        factor = _number(settings.get("scaling_factor", DEFAULT_FACTOR), "scaling_factor", where, positive=True)
        if settings.get("shift_factor") is not None:
            shift = _number(settings["shift_factor"], "shift_factor", where)
        if all(settings.get(key) is None for key in STATISTICS):
            return Scaling(torch.full((channels, 1, 1), shift), torch.ones(channels, 1, 1), factor)
    if shift:
        raise ValueError(
            f"{where}: config.json has shift_factor {shift} beside latents_mean and latents_std; expected one or the "
            "other: diffusers has no formula for all three"
        )
    mean, std = (_list(settings, key, channels, where, key == "latents_std") for key in STATISTICS)
    return Scaling(mean, std, factor)


def _list(settings: Mapping[str, Any], key: str, channels: int, where: str, positive: bool) -> Tensor:
    values = settings.get(key)
    if not isinstance(values, (list, tuple)) or len(values) != channels:
        found = f"{len(values)} values" if isinstance(values, (list, tuple)) else repr(values)[:40]
        raise ValueError(
            f"{where}: config.json has {key} {found}; expected {channels} values, one a latent channel, in both of "
            f"{' and '.join(STATISTICS)}"
        )
    numbers = [_number(value, f"{key}[{place}]", where, positive) for place, value in enumerate(values)]
    return torch.tensor(numbers).view(-1, 1, 1)


def _number(value: Any, name: str, where: str, positive: bool = False) -> float:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or (positive and value <= 0):
        expected = "a number above 0" if positive else "a finite number"
        raise ValueError(f"{where}: config.json has {name} {value!r:.40}; expected {expected}")
    return float(value)
