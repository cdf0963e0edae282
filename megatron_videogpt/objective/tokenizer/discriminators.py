"""PatchGAN discriminators of frames and of clips.

The paper says "PatchGAN" and no more.  Chosen here: convolutions of 4 pixels (and frames) a side with 2 of padding, so
that the shortest clip leaves something; as many that halve their input as `objective.layers`, each with twice the
channels of the one before, at most eight times the first; one that keeps the size, and one to a logit; leaky ReLU of
0.2; between them GroupNorm in place of the usual BatchNorm, so that what is said of a video depends on no other video
and no layout of ranks.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

MOST = 8  # times the first channels
GROUPS = 32
SLOPE = 0.2


def patches(width: int, layers: int, axes: int) -> nn.Sequential:
    """The layers of one, over 2 or 3 axes."""
    convolution: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if axes == 2 else nn.Conv3d
    widths = [width * min(2**layer, MOST) for layer in range(layers + 1)]
    found: list[nn.Module] = [convolution(3, widths[0], 4, 2, 2), nn.LeakyReLU(SLOPE)]
    for number, (before, after) in enumerate(zip(widths, widths[1:]), 1):
        stride = 2 if number < layers else 1
        found += [convolution(before, after, 4, stride, 2), nn.GroupNorm(math.gcd(GROUPS, after), after)]
        found += [nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*found, convolution(widths[-1], 1, 4, 1, 2))


class Discriminators(nn.Module):
    """Of frames and of clips; a width of 0 leaves one out."""

    def __init__(self, frame_width: int, clip_width: int, layers: int) -> None:
        super().__init__()
        self.frames = patches(frame_width, layers, 2) if frame_width else None
        self.clips = patches(clip_width, layers, 3) if clip_width else None

    def forward(self, video: Tensor) -> list[Tensor]:
        """``[b, 3, F, H, W]`` in [0, 1] -> of each discriminator its logits ``[b, patches]``, float32.

        The one of frames sees every frame alone.
        """
        shifted = 2 * video.to(next(self.parameters()).dtype) - 1
        found = []
        if self.frames is not None:
            single = shifted.transpose(1, 2)
            found.append(self.frames(single.flatten(0, 1)).unflatten(0, single.shape[:2]))
        if self.clips is not None:
            found.append(self.clips(shifted))
        return [logits.float().flatten(1) for logits in found]
