"""The networks as megatron-core modules: the tokenizer, its discriminators, what LPIPS needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from ...codec.likeness import LPIPS, VGG16
from ...config.schema import Config
from ...errors import UserError
from ...hub.common.fsq_codes import digits_of, quantized
from ...hub.common.fsq_tokenizer import FSQShape, FSQTokenizer
from ...platforms import Platform
from ...sequence.row import Row
from ..base import Build
from ..noise import generator
from .clips import FAKE, MEMBERS, REAL, clips_of, pieces
from .discriminators import Discriminators
from .losses import per_video

CHUNK = 16  # frames that LPIPS compares at a time


class Rebuilt(NamedTuple):
    """What the tokenizer made of videos of one size.  real, made: ``[b, 3, F, H, W]``, float32; digits: int64 ``[b, d,
    f, h, w]``, of their codes; members: int64 ``[b]``, which of the row's videos they are.
    """

    real: Tensor
    made: Tensor
    digits: Tensor
    members: Tensor


class Told(NamedTuple):
    """What the discriminators say: of each its logits ``[b, patches]``; members as in `Rebuilt`."""

    real: list[Tensor]
    fake: list[Tensor]
    members: Tensor


class Network(MegatronModule):
    """A plain network, `net`, as what the trainer takes."""

    def __init__(self, config: Config, platform: Platform, net: nn.Module) -> None:
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        # Of a decoder that there is not; megatron-core asks for these.
        sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
        kind = {"params_dtype": dtype, "bf16": dtype is torch.bfloat16}
        super().__init__(config=TransformerConfig(**sizes, **kind, calculate_per_token_loss=True))
        self.model_type = ModelType.encoder_or_decoder
        self.net = net.to(platform.device, dtype)

    def set_input_tensor(self, tensors: Any) -> None:
        """There are no stages."""


class Tokenizer(Network):
    """Videos -> what is left of them.  crop: side of the pieces that it learns from; in evaluation all is seen."""

    net: FSQTokenizer

    def __init__(self, config: Config, platform: Platform, shape: FSQShape) -> None:
        super().__init__(config, platform, FSQTokenizer(shape))
        self.crop = config.objective.crop

    @property
    def last(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        layer: Any = self.net.decoder_layers[-1]
        weight = layer.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, row: Row) -> list[Rebuilt]:
        """Of a row, size by size."""
        levels = self.net.shape.levels
        found = []
        for clips in clips_of(row):
            real = pieces(clips, self.crop if self.training else 0)
            codes = quantized(self.net.features(real.to(self.last.dtype)), levels)
            made = self.net.pixels(codes.to(self.last.dtype)).float()
            found.append(Rebuilt(real, made, digits_of(codes.detach(), levels), clips.members))
        return found


class Adversary(Network):
    """Discriminators of frames and clips."""

    net: Discriminators

    def logits(self, video: Tensor) -> list[Tensor]:
        """Of each discriminator ``[b, patches]``."""
        found: list[Tensor] = self.net(video)
        return found

    def forward(self, row: Row) -> list[Told]:
        """Of the real and the made videos of a row; nothing where there are none yet."""
        found, place = [], 0
        while f"{FAKE} {place}" in row.context:
            real, fake, members = (row.context[f"{name} {place}"].value for name in (REAL, FAKE, MEMBERS))
            found.append(Told(self.logits(real), self.logits(fake), members))
            place += 1
        return found

    @property
    def nothing(self) -> Tensor:
        """Zero, whose gradients are zeros: a step with it leaves everything as it is."""
        return 0.0 * torch.stack([parameter.float().sum() for parameter in self.parameters()]).sum()


class Features(Network):
    """LPIPS with VGG-16 of videos, frozen, in float32 whatever the run's precision."""

    net: LPIPS

    def __init__(self, config: Config, platform: Platform) -> None:
        super().__init__(config, platform, LPIPS(VGG16))
        self.net.float()

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """``[b, 3, F, H, W]`` in [0, 1], each -> ``[b]``: the mean over frames."""
        frames = [video.transpose(1, 2).flatten(0, 1).split(CHUNK) for video in (made, real)]
        values = [self.net(one, other) for one, other in zip(*frames)]
        return per_video(torch.cat(values).unflatten(0, (len(made), made.shape[2])))


def shape_of(config: Config) -> FSQShape:
    """Sizes of the run's tokenizer."""
    options = config.objective
    return FSQShape(options.width, options.groups, options.units, options.levels)


def build_tokenizer() -> Build:
    """See `objective.base.Part`."""
    return lambda config, channels, platform, *_: Tokenizer(config, platform, shape_of(config))


def build_adversary() -> Build:
    """See `objective.base.Part`."""

    def build(config: Config, channels: int, platform: Platform, *_: Any) -> Adversary:
        options = config.objective
        return Adversary(config, platform, Discriminators(options.frame_width, options.clip_width, options.layers))

    return build


def build_features() -> Build:
    """See `objective.base.Part`."""
    return lambda config, channels, platform, *_: Features(config, platform)


def start(make: Callable[[], nn.Module], name: str, chunks: Sequence[nn.Module], seed: int) -> None:
    """The library's start values, drawn on the CPU from (seed, name) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, name).initial_seed())
        fresh = make().state_dict()
    for chunk in chunks:
        net: Any = chunk.net
        net.load_state_dict(fresh)


def start_tokenizer(config: Config) -> Callable[[Sequence[nn.Module], int], None]:
    """The library's defaults, as published; with `objective.grey_start` the decoder begins with grey."""

    def make() -> FSQTokenizer:
        tokenizer = FSQTokenizer(shape_of(config))
        if config.objective.grey_start:
            last: Any = tokenizer.decoder_layers[-1]
            last.conv.bias.data.fill_(0.5)
        return tokenizer

    return partial(start, make, "tokenizer")


def start_adversary(config: Config) -> Callable[[Sequence[nn.Module], int], None]:
    """The library's defaults too."""
    options = config.objective
    widths = options.frame_width, options.clip_width, options.layers
    return partial(start, lambda: Discriminators(*widths), "discriminator")


def start_features(config: Config) -> Callable[[Sequence[nn.Module], int], None]:
    """From the user's folder, every time that a run starts."""

    def fill(chunks: Sequence[nn.Module], seed: int) -> None:
        for chunk in chunks:
            assert isinstance(chunk, Features)
            try:
                chunk.net.load(Path(config.objective.lpips_path))
            except UserError as error:
                raise UserError(f"objective.lpips_path: {error}") from error

    return fill
