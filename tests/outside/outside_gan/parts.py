"""Generator and discriminator, as megatron-core modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from megatron_videogpt.objective.base import Part
from megatron_videogpt.objective.noise import generator
from megatron_videogpt.sequence.row import Row

WIDTH = 24


class Network(MegatronModule):
    """Two linear layers."""

    def __init__(self, config: Any, channels: int, platform: Any, outputs: int) -> None:
        context = config.parallel.context
        super().__init__(
            config=TransformerConfig(
                num_layers=1,
                hidden_size=WIDTH,
                num_attention_heads=1,
                context_parallel_size=context,
                calculate_per_token_loss=True,
            )
        )
        self.model_type = ModelType.encoder_or_decoder
        self.first = nn.Linear(channels, WIDTH, device=platform.device)
        self.last = nn.Linear(WIDTH, outputs, device=platform.device)

    def set_input_tensor(self, tensors: Any) -> None:
        """There are no stages."""

    def through(self, x: Tensor) -> Tensor:
        """``[n, channels]`` -> ``[n, outputs]``."""
        return self.last(torch.tanh(self.first(x)))


class Generator(Network):
    """Noisy cells -> cells ``[n, C]``."""

    def forward(self, row: Row) -> Tensor:
        """Of a row or shard."""
        return self.through(row.streams["cell"]["noisy"])


class Discriminator(Network):
    """Cells -> how real they look."""

    def logits(self, x: Tensor) -> Tensor:
        """``[n, C]`` -> ``[n]``."""
        return self.through(x)[:, 0]

    def forward(self, row: Row) -> tuple[Tensor, Tensor]:
        """Of the real cells of a row, and of those that the generator made of it."""
        return self.logits(row.target), self.logits(row.streams["cell"]["fake"])


def start(chunks: Sequence[nn.Module], seed: int) -> None:
    """Start values by name."""
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                draws = torch.randn(parameter.shape, generator=generator(seed, f"{type(chunk).__name__} {name}"))
                parameter.copy_(0.3 * draws)


def parts(config: Any) -> tuple[Part, ...]:
    """See `objective.build`."""
    rate, channels_of_a_logit = config.objective.discriminator_lr, 1
    return (
        Part("generator", lambda c, channels, platform, *_: Generator(c, channels, platform, channels), start=start),
        Part(
            "discriminator",
            lambda c, channels, platform, *_: Discriminator(c, channels, platform, channels_of_a_logit),
            start=start,
            optimizer=lambda options: replace(options, lr=rate, clip_grad=0.0),
        ),
        Part(
            "average",
            lambda c, channels, platform, *_: Generator(c, channels, platform, channels),
            trained=False,
            start=start,
            average_of="generator",
            decay=0.5,
        ),
    )
