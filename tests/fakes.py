"""Stand-ins for sampling whose results are known beforehand: lossless codecs, and models that
predict something simple.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from megatron_videogpt.config.schema import Config, SampleConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.hub.common.sampling_videogpt import Recompute
from megatron_videogpt.objective.next_clip.sampler import ClipSampler
from megatron_videogpt.sample.generate import Model

CONFIG = Config(
    data=DataConfig(longest_side=32, frame_interval=(2, 2), physics=PhysicsConfig(size=32)),
    sample=SampleConfig(history=4, clips=(3, 2), window=12, steps=2, guidance=1.0),
)


class Unshuffle:
    """A lossless codec: pixels regrouped, 8x8 to a latent cell."""

    name, channels, spatial_stride, temporal_stride, fingerprint = "unshuffle", 192, 8, 1, "0"

    def encode(self, video):
        return F.pixel_unshuffle(video, 8), None

    def decode(self, latents):
        return F.pixel_shuffle(latents, 8)

    def to(self, device, dtype=None):
        return self


class Joining(Unshuffle):
    """As `Unshuffle`, with every 4 frames after the first joined (the last of them stays); it decodes only from the
    beginning, as a causal video codec does.
    """

    temporal_stride = 4

    def encode(self, video):
        assert len(video) % 4 == 1
        return F.pixel_unshuffle(video[::4], 8), None

    def decode(self, latents):
        frames = F.pixel_shuffle(latents, 8)
        assert float(frames[0].mean().abs()) < 0.01, (
            "must start with the history's first frame, which is mid-grey in these tests"
        )
        return torch.cat([frames[:1], frames[1:].repeat_interleave(4, 0)])


def repeat_last(histories, zs, t, conditions):
    """Predicts that nothing moves."""
    return [past[-1:].expand_as(z) for past, z in zip(histories, zs)]


def fake_model(function=repeat_last, codec=None, **sample) -> Model:
    """A model that predicts `function(histories, clips, t, conditions)`, with options of `CONFIG.sample` replaced."""
    return Model(
        lambda settings: ClipSampler(Recompute(function)),
        replace(CONFIG, sample=replace(CONFIG.sample, **sample)),
        codec or Unshuffle(),
        torch.device("cpu"),
    )


def plain(value, frames, height=16, width=24):
    """Frames of one grey."""
    return np.full((frames, height, width, 3), value, np.uint8)
