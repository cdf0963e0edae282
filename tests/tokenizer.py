"""The FSQ tokenizer written once more from its description, in plain functions on tensors by name, and small random
ones for tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv3d

from megatron_videogpt.codec.likeness import VGG16
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer

SMALL = FSQShape(width=4, groups=2, units=1, levels=(8, 5, 5))
EVERY = FSQShape(width=4, groups=2, units=1)


def random_tokenizer(shape: FSQShape = SMALL, seed: int = 0) -> FSQTokenizer:
    """Weights spread widely, so that a wrong layer shows and many codes are used."""
    model, generator = FSQTokenizer(shape), torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        fan_in = value[0].numel() if value.ndim == 5 and "beta" not in key else 0
        spread = torch.randn(value.shape, generator=generator)
        value.copy_(spread * 1.4 / fan_in**0.5 if fan_in else 0.3 * spread + (0 if key.endswith("bias") else 1))
    # The last layer of the encoder spreads over all levels.
    last = next(key for key in reversed(list(model.state_dict())) if key.startswith("encoder_layers."))
    model.state_dict()[last.replace("bias", "weight")].mul_(2)
    return model.eval().requires_grad_(False)


def saved(folder: Path, shape: FSQShape = SMALL, seed: int = 0) -> Path:
    """A folder with a small random tokenizer."""
    random_tokenizer(shape, seed).save_pretrained(folder)
    return folder


def random_vgg16(seed: int = 0) -> dict[str, Tensor]:
    """Weights by torchvision's names, of a spread that keeps what passes through them."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for layer in (layer for group in VGG16.groups for layer in group):
        drawn = torch.randn(layer.outside, layer.inside, 3, 3, generator=generator)
        weights[f"features.{layer.place}.weight"] = drawn * (2 / (9 * layer.inside)) ** 0.5
        weights[f"features.{layer.place}.bias"] = 0.1 * torch.randn(layer.outside, generator=generator)
    return weights


def video(*shape: int, seed: int = 0) -> Tensor:
    """Smooth random pixels in [0, 1], [B, 3, F, H, W]."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (noise + noise.roll(1, -1) + noise.roll(1, -2)) / 3


class Twin:
    """encode: video to the encoder's output; decode: codes to pixels; both by the tables of the description."""

    def __init__(self, state: dict[str, Tensor], shape: FSQShape) -> None:
        self.state, self.groups = state, shape.groups
        u = shape.units
        self.encoder = ["conv", *["unit"] * u, (1, 2, 2), *["unit"] * u, (2, 2, 2), *["unit"] * u, (2, 2, 2)]
        self.encoder += [*["unit"] * 2 * u, "norm", "swish", "conv"]
        self.decoder = ["conv", *["unit"] * 2 * u]
        for block in ("222", "222", "122"):
            self.decoder += ["conv", block, *["unit"] * u]
        self.decoder += ["norm", "swish", "conv"]

    def encode(self, x: Tensor) -> Tensor:
        return self._walk("encoder_layers", self.encoder, x)

    def decode(self, x: Tensor) -> Tensor:
        return self._walk("decoder_layers", self.decoder, x)

    def _walk(self, half: str, layers: list, x: Tensor) -> Tensor:
        for number, layer in enumerate(layers):
            name = f"{half}.{number}"
            if isinstance(layer, tuple):
                x = self._conv(name, x, layer)
            elif layer.isdigit():
                x = depth_to_space(x, tuple(map(int, layer)))
            else:
                x = {"conv": self._conv, "unit": self._unit, "norm": self._norm, "swish": self._swish}[layer](name, x)
        return x

    def _conv(self, name: str, x: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        name += ".conv" if f"{name}.conv.weight" in self.state else ""
        weight = self.state[f"{name}.weight"]
        if weight.shape[-1] == 3:
            x = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (2, 0), (1, 1), (1, 1)), mode="edge"))
        return conv3d(x, weight, self.state[f"{name}.bias"], stride)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        frames = []
        for frame in x.unbind(2):
            groups = frame.reshape(len(x), self.groups, -1)
            mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
            frames.append(((groups - mean) / (variance + 1e-5).sqrt()).reshape(frame.shape))
        weight, bias = (self.state[f"{name}.{kind}"].view(1, -1, 1, 1, 1) for kind in ("weight", "bias"))
        return torch.stack(frames, 2) * weight + bias

    def _swish(self, name: str, x: Tensor) -> Tensor:
        return x / (1 + (-self.state[f"{name}.beta"] * x).exp())

    def _unit(self, name: str, x: Tensor) -> Tensor:
        steps: list[Callable[[str, Tensor], Tensor]] = [self._norm, self._swish, self._conv] * 2
        y = x
        for number, step in enumerate(steps):
            y = step(f"{name}.fn.{number}", y)
        beside = f"{name}.residual_fn.0"
        return y + (self._conv(beside, x) if f"{beside}.conv.weight" in self.state else x)


def depth_to_space(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Element by element of a block."""
    (bt, bh, bw), (b, c, t, h, w) = block, x.shape
    inside = c // (bt * bh * bw)
    out = x.new_zeros(b, inside, t * bt, h * bh, w * bw)
    for it in range(bt):
        for ih in range(bh):
            for iw in range(bw):
                first = ((it * bh + ih) * bw + iw) * inside
                out[:, :, it::bt, ih::bh, iw::bw] = x[:, first : first + inside]
    return out[:, :, bt - 1 :]


def config_with(folder: Path, **changes: object) -> None:
    """Change fields of a folder's config.json; None leaves one out."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
