"""Training the tiny codec: what is computed where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.hub.common.tiny_codec import TinyAutoencoder, TinyShape
from megatron_videogpt.train.codec import tiny

SHAPE = TinyShape(4, 8, 1, 8, 1, 8, 1)


class Elsewhere(Tensor):
    """A tensor of a device that has no float64."""

    def double(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("float64 on the device")

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor)


def noise(seed: int, count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def started(pixels: Tensor) -> TinyAutoencoder:
    torch.manual_seed(0)
    model = TinyAutoencoder(SHAPE)
    model.start_from_principal_components(pixels)
    return model


def test_principal_components_need_no_float64_of_a_device() -> None:
    pixels = noise(1, 16, 32)
    here, there = started(pixels), started(pixels.as_subclass(Elsewhere))
    for name, value in here.state_dict().items():
        assert torch.equal(value, there.state_dict()[name]), name
    error = here.decode(here.raw_latents(pixels)) - pixels
    assert error.square().mean() < pixels.square().mean()


def test_statistics_of_latents_need_no_float64_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(there: bool) -> TinyAutoencoder:
        model, raw = started(noise(1, 16, 32)), TinyAutoencoder.raw_latents
        if there:
            monkeypatch.setattr(model, "raw_latents", lambda video: raw(model, video).as_subclass(Elsewhere))
        draws = iter(range(100))
        pools: Any = SimpleNamespace(batch=lambda side, count: noise(next(draws), 2, 16))
        tiny.freeze_encoder(model, pools, torch.device("cpu"))
        return model

    here, there = frozen(False), frozen(True)
    assert torch.equal(here.shift, there.shift) and torch.equal(here.scale, there.scale)
    latents = torch.cat([here.encode(noise(draw, 2, 16)) for draw in range(100)])
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    assert not here.linear.weight.requires_grad and here.paint.weight.requires_grad
