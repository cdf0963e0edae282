"""The model, and a frozen quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megatron_videogpt.objective.base import Part
from megatron_videogpt.objective.build import build_network
from megatron_videogpt.objective.noise import normal

from .parameters import BITS


class Quantizer(nn.Module):
    """The id of a latent says on which side of each of some hyperplanes it lies."""

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.planes = nn.Parameter(torch.empty(bits, channels))

    def forward(self, latents: Tensor) -> Tensor:
        """``[n, C]`` -> int64 ``[n]``."""
        sides = nn.functional.linear(latents, self.planes) > 0
        return (sides * 2 ** torch.arange(sides.shape[1], device=latents.device)).sum(dim=1)


def start(chunks: Sequence[nn.Module], seed: int) -> None:
    """Hyperplanes of the seed."""
    for chunk in chunks:
        planes = chunk.planes
        assert isinstance(planes, nn.Parameter)
        planes.data.copy_(normal(seed, "hyperplanes", tuple(planes.shape)))


def parts(config: Any) -> tuple[Part, ...]:
    """See `objective.build`."""
    return (
        Part("model", build_network),
        Part("quantizer", lambda c, channels, *_: Quantizer(channels, BITS), trained=False, start=start),
    )
