"""LPIPS with VGG-16 (Zhang et al. 2018) as a loss: distance of features, whose weights lie in a local folder.

The linear heads come with torchmetrics; VGG-16's convolutions are the user's: nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError, shortened
from .losses import per_video

FILES = ("vgg16-397923af.pth", "vgg16.safetensors")
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions before each of its poolings; LPIPS reads the last of each group."""
PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Their numbers among torchvision's `features`."""
# LPIPS was fitted to pictures in [-1, 1] that are shifted and scaled so, per colour (ImageNet's statistics).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
CHUNK = 16  # frames at a time


class Perceptual(nn.Module):
    """LPIPS of videos; its weights are filled by `load`."""

    def __init__(self) -> None:
        super().__init__()
        before, groups = 3, []
        for widths in WIDTHS:
            convolutions = []
            for width in widths:
                convolutions.append(nn.Conv2d(before, width, 3, padding=1))
                before = width
            groups.append(nn.ModuleList(convolutions))
        self.groups = nn.ModuleList(groups)
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(widths[-1])) for widths in WIDTHS)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """``[b, 3, F, H, W]`` in [0, 1], each -> ``[b]``: the mean over frames."""
        frames = [video.transpose(1, 2).flatten(0, 1) for video in (made, real)]
        values = [self.distance(a, b) for a, b in zip(*(part.split(CHUNK) for part in frames))]
        return per_video(torch.cat(values).unflatten(0, (len(made), made.shape[2])))

    def distance(self, made: Tensor, real: Tensor) -> Tensor:
        """Of frames ``[n, 3, H, W]`` in [0, 1] -> ``[n]``: features normalised over channels, squared differences
        weighted by the heads, averaged over places, summed over the five groups.
        """
        shift, scale = (torch.tensor(values, device=made.device).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        pair = (2 * torch.cat([made, real]).float() - 1 - shift) / scale
        total = torch.zeros(len(made), device=made.device)
        for number, (group, head) in enumerate(zip(self.groups, self.heads)):
            if number and min(pair.shape[-2:]) < 2:
                break  # Of pictures below 16 pixels a side nothing is left for the last groups.
            pair = F.max_pool2d(pair, 2) if number else pair
            for convolution in group:  # type: ignore[attr-defined]
                pair = F.relu(convolution(pair))
            directions = pair / (pair.square().sum(1, keepdim=True) + 1e-8).sqrt()
            one, other = directions.chunk(2)
            total = total + ((one - other).square() * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Fill the weights; UserError, one line, where a file is missing, damaged, or of another network."""
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise UserError(f"objective.lpips_path={folder}: holds no {' or '.join(FILES)}; put VGG-16's weights there")
        trunk, heads = _tensors(path), _tensors(_heads())
        groups: Any = self.groups
        for group, places in zip(groups, PLACES):
            for convolution, place in zip(group, places):
                for kind in ("weight", "bias"):
                    _fill(getattr(convolution, kind), trunk, f"features.{place}.{kind}", path)
        for number, head in enumerate(self.heads):
            key = f"lin{number}.model.1.weight"
            _fill(head, {key: heads[key].flatten()} if key in heads else {}, key, _heads())


def _heads() -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise UserError("objective.feature=lpips: torchmetrics, which has LPIPS' heads, is not installed; install it")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


def _tensors(path: Path) -> dict[str, Tensor]:
    """Of a file of tensors; what is a pickle is read as tensors alone."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not a file of tensors ({shortened(error)}); copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no tensors by name; expected VGG-16's weights as torchvision has them")
    return found


def _fill(parameter: Tensor, tensors: dict[str, Tensor], key: str, path: Path) -> None:
    value = tensors.get(key)
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        found = list(value.shape) if isinstance(value, Tensor) else "nothing"
        raise UserError(f"{path}: expected {key} of shape {list(parameter.shape)}, found {found}; is it VGG-16?")
    parameter.copy_(value)
