"""The tiny codec: an asymmetric convolutional autoencoder on 8x8 pixel blocks, trained by `tools/train_codec.py`.

The encoder is cheap because it runs inside the training loop on CPUs; the decoder, which only sampling uses, is larger
and works at two scales.  Any height and width that are multiples of 8.
Exported folders hold a copy of this file: it needs torch alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

STRIDE = 8


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the tiny codec; stored as JSON beside its weights."""

    channels: int = 16  # latent channels
    encoder_width: int = 96
    encoder_blocks: int = 1
    decoder_width: int = 128  # at stride 8
    decoder_blocks: int = 2
    fine_width: int = 64  # at stride 4
    fine_blocks: int = 2

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3x3; the second convolution starts at zero, so that depth costs
    nothing at first.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(silu(self.first(silu(x))))


class TinyAutoencoder(nn.Module):
    """Pixels [F, 3, H, W] in [-1, 1] to normalised latents [F, channels, H/8, W/8] and back.

    ``shift`` and ``scale`` (buffers, one value a channel) make latents of the training mixture zero mean and unit
    variance.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        block = 3 * STRIDE * STRIDE
        self.shape = shape
        self.enter = nn.Conv2d(block, shape.encoder_width, 1)
        self.encoder = nn.Sequential(*[ResidualBlock(shape.encoder_width) for _ in range(shape.encoder_blocks)])
        self.leave = nn.Conv2d(shape.encoder_width, shape.channels, 1)
        self.linear = nn.Conv2d(block, shape.channels, 1, bias=False)
        self.open = nn.Conv2d(shape.channels, shape.decoder_width, 3, padding=1)
        self.decoder = nn.Sequential(*[ResidualBlock(shape.decoder_width) for _ in range(shape.decoder_blocks)])
        self.upscale = nn.Conv2d(shape.decoder_width, 4 * shape.fine_width, 1)
        self.fine = nn.Sequential(*[ResidualBlock(shape.fine_width) for _ in range(shape.fine_blocks)])
        self.paint = nn.Conv2d(shape.fine_width, 48, 3, padding=1)
        self.linear_paint = nn.Conv2d(shape.channels, block, 1)
        for layer in (self.leave, self.paint):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.register_buffer("shift", torch.zeros(shape.channels))
        self.register_buffer("scale", torch.ones(shape.channels))

    def raw_latents(self, video: Tensor) -> Tensor:
        """Latents before normalisation [F, channels, H/8, W/8]."""
        blocks = pixel_unshuffle(video, STRIDE)
        return self.leave(silu(self.encoder(self.enter(blocks)))) + self.linear(blocks)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents [F, channels, H/8, W/8] of pixels in [-1, 1]."""
        return (self.raw_latents(video) - self.shift[:, None, None]) * self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [F, 3, 8h, 8w] of normalised latents; not clamped, so that training sees the error outside [-1, 1]
        too.
        """
        coarse = silu(self.upscale(self.decoder(self.open(latents))))
        detail = pixel_shuffle(self.paint(silu(self.fine(pixel_shuffle(coarse, 2)))), 4)
        return detail + pixel_shuffle(self.linear_paint(latents), STRIDE)

    @torch.no_grad()
    def start_from_principal_components(self, pixels: Tensor) -> None:
        """Set the linear paths to the principal components of 8x8 blocks of ``pixels`` [F, 3, H, W]; the rest starts at
        zero output.

        From random weights, hundreds of steps go into finding this subspace.  Component i (standard deviation s_i) is
        stored with variance proportional to s_i, which minimises the pixel error that a given noise on the latents
        causes; a Hadamard rotation then spreads the components so that every channel has the same variance.  Computed
        in float64 on the CPU, wherever the pixels and the model are.
        """
        channels = self.shape.channels
        rotation = torch.ones(1, 1, dtype=torch.float64)
        while len(rotation) < channels:
            rotation = torch.cat([torch.cat([rotation, rotation], 1), torch.cat([rotation, -rotation], 1)]) / math.sqrt(
                2
            )
        if len(rotation) != channels:
            raise ValueError(f"channels={channels}: must be a power of two")
        blocks = pixel_unshuffle(pixels.cpu(), STRIDE).transpose(0, 1).flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(blocks))
        deviation, vectors = values.flip(0)[:channels].sqrt(), vectors.flip(1)[:, :channels]
        stored = (channels * deviation / deviation.sum()).sqrt()
        self.linear.weight.copy_((rotation @ (vectors * stored / deviation).T)[..., None, None].float())
        self.linear_paint.weight.copy_((vectors * deviation / stored @ rotation.T)[..., None, None].float())
        self.linear_paint.bias.copy_(blocks.mean(1).float())  # type: ignore[union-attr]
