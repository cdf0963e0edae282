"""How alike pictures are: SSIM, and LPIPS with weights that lie on this machine.  Both can be learned from."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError, shortened

SSIM_SIDE = 6  # pixels: its window reaches 5 over the edge, where it sees the picture mirrored
# LPIPS was fitted to pictures in [-1, 1] that are shifted and scaled so, per colour (ImageNet's statistics).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Layer(NamedTuple):
    """A convolution: its number among torchvision's `features`, channels, kernel, stride, padding."""

    place: int
    inside: int
    outside: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Trunk(NamedTuple):
    """The network whose features are compared.  groups: its convolutions, whose last each is compared; pooled: before
    which groups; pooling: (kernel, stride); files: names of its weights; heads: torchmetrics' file of the linear heads.
    """

    groups: tuple[tuple[Layer, ...], ...]
    pooled: tuple[int, ...]
    pooling: tuple[int, int]
    files: tuple[str, ...]
    heads: str


ALEXNET = Trunk(
    (
        (Layer(0, 3, 64, 11, 4, 2),),
        (Layer(3, 64, 192, 5, 1, 2),),
        (Layer(6, 192, 384),),
        (Layer(8, 384, 256),),
        (Layer(10, 256, 256),),
    ),
    (1, 2),
    (3, 2),
    ("alexnet-owt-7be5be79.pth",),
    "alex.pth",
)
VGG16 = Trunk(
    (
        (Layer(0, 3, 64), Layer(2, 64, 64)),
        (Layer(5, 64, 128), Layer(7, 128, 128)),
        (Layer(10, 128, 256), Layer(12, 256, 256), Layer(14, 256, 256)),
        (Layer(17, 256, 512), Layer(19, 512, 512), Layer(21, 512, 512)),
        (Layer(24, 512, 512), Layer(26, 512, 512), Layer(28, 512, 512)),
    ),
    (1, 2, 3, 4),
    (2, 2),
    ("vgg16-397923af.pth", "vgg16.safetensors"),
    "vgg.pth",
)


class LPIPS(nn.Module):
    """Distance of pictures (Zhang et al. 2018): features normalised over channels, squared differences weighted by the
    heads, averaged over places, summed over the trunk's groups.  Its weights are filled by `load`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.groups = nn.ModuleList([nn.ModuleList([nn.Conv2d(*one[1:]) for one in group]) for group in trunk.groups])
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(group[-1].outside)) for group in trunk.groups)
        # Buffers, so that no step copies them to the device.
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """``[n, 3, H, W]`` in [0, 1] each -> ``[n]``, float32; of small pictures, of which nothing is left for the last
        groups, the sum over the first.
        """
        pair = (2 * torch.cat([one, other]).float() - 1 - self.shift) / self.scale
        total = torch.zeros(len(one), device=one.device)
        groups: Any = self.groups
        for number, (group, head) in enumerate(zip(groups, self.heads)):
            if number in self.trunk.pooled:
                if min(pair.shape[-2:]) < self.trunk.pooling[0]:
                    break
                pair = F.max_pool2d(pair, *self.trunk.pooling)
            for convolution in group:
                pair = F.relu(convolution(pair))
            directions = pair / (pair.square().sum(1, keepdim=True) + 1e-8).sqrt()
            first, second = directions.chunk(2)
            total = total + ((first - second).square() * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Fill the weights: the trunk's from a file in ``folder``, the heads' from torchmetrics.

        Raises:
            UserError: a file is missing, damaged, or of another network; one line.
        """
        path = next((folder / name for name in self.trunk.files if (folder / name).is_file()), None)
        if path is None:
            raise UserError(f"{folder}: holds no {' or '.join(self.trunk.files)}; put LPIPS' weights there")
        known, linear, place = _tensors(path), heads_path(self.trunk), "features.{}.{}"
        groups: Any = self.groups
        for group, layers in zip(groups, self.trunk.groups):
            for convolution, layer in zip(group, layers):
                for kind in ("weight", "bias"):
                    _fill(getattr(convolution, kind), known, place.format(layer.place, kind), path)
        fitted = _tensors(linear)
        for number, head in enumerate(self.heads):
            _fill(head.view(1, -1, 1, 1), fitted, f"lin{number}.model.1.weight", linear)


def heads_path(trunk: Trunk) -> Path:
    """The file of the linear heads; UserError where torchmetrics, which has it, is not installed."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise UserError("torchmetrics, which has LPIPS' heads, is not installed; pip install torchmetrics")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / trunk.heads


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004; Gaussian window of sigma 1.5, mirrored edges) of each picture, ``[n]``.

    one, other: ``[n, 3, H, W]`` in [0, 1], sides of at least `SSIM_SIDE` pixels.
    """
    # Late, because it takes seconds.
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(one, other, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.view(-1)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Of a file of tensors; what exists as a pickle only is read as tensors alone."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not a file of tensors ({shortened(error)}); copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no tensors by name; expected weights as torchvision has them")
    return found


def _fill(parameter: Tensor, tensors: dict[str, Tensor], key: str, path: Path) -> None:
    value = tensors.get(key)
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        found = list(value.shape) if isinstance(value, Tensor) else "nothing of the kind"
        raise UserError(f"{path}: expected {key} of shape {list(parameter.shape)}, found {found}")
    parameter.copy_(value)
