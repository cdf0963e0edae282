"""The VAE between pixels and latents, and the files of a folder."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

try:
    from .layers_videogpt import computing_device
    from .vae_videogpt import VAE_WEIGHTS, Scaling, scaling_of, weight_files
except ImportError:  # the folder itself is on sys.path
    from layers_videogpt import computing_device  # type: ignore[no-redef]
    from vae_videogpt import VAE_WEIGHTS, Scaling, scaling_of, weight_files  # type: ignore[no-redef]

VAE_CLASSES = ("AutoencoderKL", "AutoencoderKLWan")
BATCH = 16  # frames per encoder or decoder call


class TinyVAE(nn.Module):
    """The tiny codec of megatron_videogpt with what a diffusers pipeline asks of its parts; its latents are scaled
    already.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path) -> None:
        """Settings and weights as `load_vae` reads them, and the codec's code beside them in the folder above."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(
            json.dumps({"_class_name": "TinyAutoencoder", **self.model.shape.to_dict()}, indent=2) + "\n",
            encoding="utf-8",
        )
        save_file(
            {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, Path(folder) / VAE_WEIGHTS
        )
        copy_file(Path(inspect.getfile(type(self.model))), Path(folder).parent)


def load_vae(folder: Path, dtype: torch.dtype | None) -> nn.Module:
    """The VAE of a folder, from safetensors only; float32 where no dtype is asked for.

    Raises:
        ValueError: no settings or no weights in it, an unknown class, or latents that cannot be scaled.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: no readable config.json of a VAE ({error}); pass vae=... or put a diffusers VAE there"
        ) from error
    kind = settings.pop("_class_name", None)
    weight_files(folder)
    try:
        vae = _tiny(folder, settings) if kind == "TinyAutoencoder" else _diffusers(folder, kind)
    except (OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: does not load as the {kind} that its config.json names ({one_line(error)})"
        ) from error
    return vae.to(dtype or torch.float32).eval().requires_grad_(False)


def _tiny(folder: Path, settings: dict[str, Any]) -> nn.Module:
    try:
        code = import_module(".tiny_codec", __package__) if __package__ else import_module("tiny_codec")
    except ModuleNotFoundError as error:
        if not str(error.name).endswith("tiny_codec"):
            raise
        raise ValueError(
            f"{folder}: the tiny codec's code is not beside {Path(__file__).name}; import the pipeline from "
            "the exported folder"
        ) from None
    tiny = code.TinyAutoencoder(
        code.TinyShape(**{key: value for key, value in settings.items() if not key.startswith("_")})
    )
    tiny.load_state_dict(load_file(folder / VAE_WEIGHTS))
    return TinyVAE(tiny)


def _diffusers(folder: Path, kind: str | None) -> nn.Module:
    if kind not in VAE_CLASSES:
        raise ValueError(
            f"{folder}/config.json: _class_name is {kind!r}; expected TinyAutoencoder, {', '.join(VAE_CLASSES)}"
        )
    # diffusers fills missing weights with random numbers and only warns, hence the loading report.
    options = {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "low_cpu_mem_usage": False,
    }
    vae, report = getattr(diffusers, kind).from_pretrained(folder, **options)
    if report["missing_keys"]:
        raise ValueError(
            f"{folder}: {len(report['missing_keys'])} weights are missing, {sorted(report['missing_keys'])[0]} for one"
        )
    _scaling(vae, str(folder))
    return vae


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def model_index(vae_class: str | None) -> dict[str, Any]:
    """`model_index.json`: `VideoGPTPipeline.from_pretrained` does not read it, DiffusionPipeline's does.

    With the folder on sys.path, that one loads the model and a diffusers VAE by itself; any other VAE has to be passed
    to it.
    """
    return {
        "_class_name": ["pipeline_videogpt", "VideoGPTPipeline"],
        "_diffusers_version": diffusers.__version__,
        "model": ["modeling_videogpt", "VideoGPTModel"],
        "vae": ["diffusers", vae_class] if vae_class in VAE_CLASSES else [None, None],
    }


def write_code(folder: Path, vae_class: str | None, model: Path) -> None:
    """Copy the Python files that lie beside this one and in the folder `model`, but for a tiny codec's own, and write
    `model_index.json`.

    In megatron_videogpt these are two folders, of which one imports from the other; in the new folder all lie side by
    side.
    """
    for path in {
        file.name: file for place in (Path(__file__).parent, model) for file in sorted(place.glob("*_videogpt.py"))
    }.values():
        text = path.read_text(encoding="utf-8").replace("from " + "..common.", "from .")
        if not (folder / path.name).exists() or not path.samefile(folder / path.name):
            (folder / path.name).write_text(text, encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(model_index(vae_class), indent=2) + "\n", encoding="utf-8")


def copy_file(path: Path, folder: Path) -> None:
    """Copy a file under its name; nothing to do where it is that very file."""
    if not (folder / path.name).exists() or not path.samefile(folder / path.name):
        shutil.copyfile(path, folder / path.name)


def pixel_multiple(vae: Any, patch: int) -> int:
    """Sides of a frame must be multiples of this many pixels: those of a patch."""
    if _is(vae, "TinyVAE"):
        return 8 * patch
    if _is(vae, "AutoencoderKLWan"):
        return 2 ** (len(vae.config.dim_mult) - 1) * (getattr(vae.config, "patch_size", None) or 1) * patch
    return 2 ** (len(vae.config.block_out_channels) - 1) * patch


@torch.no_grad()
def encode(vae: Any, frames: np.ndarray) -> Tensor:
    """uint8 ``[F, H, W, 3]`` -> scaled latents ``[f, C, h, w]`` float32 on the VAE's device, the posterior's mean.

    Raises:
        ValueError: a number of frames that a VAE with temporal stride does not take, or latents that cannot be scaled.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0
    if _is(vae, "TinyVAE"):
        return _batched(vae.model.encode, pixels, vae)
    scaling = _scaling(vae)
    if not _is(vae, "AutoencoderKLWan"):
        return scaling.scaled(_batched(lambda part: vae.encode(part).latent_dist.mean, pixels, vae))
    stride = _temporal_stride(vae)
    if (len(pixels) - 1) % stride:
        raise ValueError(f"video of {len(pixels)} frames: this VAE takes 1 + {stride}n frames; cut or extend the video")
    mean = (
        vae.encode(pixels.to(computing_device(vae), vae.dtype).transpose(0, 1)[None])
        .latent_dist.mean[0]
        .transpose(0, 1)
        .float()
    )
    return scaling.scaled(mean)


@torch.no_grad()
def decode(vae: Any, history: Tensor, new: Tensor) -> Tensor:
    """Scaled latents ``[f, C, h, w]`` that follow a history ``[H, C, h, w]`` -> their pixels ``[F, 3, H, W]`` float32
    in [0, 1].
    """
    if _is(vae, "TinyVAE"):
        pixels = _batched(vae.model.decode, new, vae)
    elif not _is(vae, "AutoencoderKLWan"):
        pixels = _batched(lambda part: vae.decode(part).sample, _scaling(vae).raw(new), vae)
    else:
        # Causal in time: what comes first shapes what follows, and the very first latent frame is a single picture.
        device = computing_device(vae)
        raw = _scaling(vae).raw(torch.cat([history.to(device), new.to(device)]).float())
        pixels = vae.decode(raw.to(vae.dtype).transpose(0, 1)[None]).sample[0].transpose(0, 1).float()
        pixels = pixels[len(pixels) - _temporal_stride(vae) * len(new) if len(history) else 0 :]
    return (pixels.clamp(-1, 1) + 1.0) / 2


def _is(vae: Any, kind: str) -> bool:
    # By name: the same file may have been loaded twice, from the folder and from the cache of transformers or
    # diffusers.
    return type(vae).__name__ == kind


def _scaling(vae: Any, where: str = "this VAE") -> Scaling:
    wan = _is(vae, "AutoencoderKLWan")
    return scaling_of(vae.config, type(vae).__name__, vae.config.z_dim if wan else vae.config.latent_channels, where)


def _temporal_stride(vae: Any) -> int:
    return 2 ** sum(vae.config.temperal_downsample)


def _batched(run: Callable[[Tensor], Tensor], inputs: Tensor, vae: Any) -> Tensor:
    device = computing_device(vae)
    return torch.cat([run(part.to(device, vae.dtype)).float() for part in inputs.split(BATCH)])
