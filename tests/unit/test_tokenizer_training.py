"""Training a tokenizer: losses, discriminators, pieces of clips, sizes and rules against closed forms, counts of torch
and golden numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.likeness import LPIPS, SCALE, SHIFT, VGG16
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.errors import UserError
from megatron_videogpt.hub.common.fsq_codes import codes_of, digits_of, quantized
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.build import build_objective, parameter_table, work_of
from megatron_videogpt.objective.tokenizer.clips import Clips, clips_of, corner, grouped, pieces
from megatron_videogpt.objective.tokenizer.discriminators import Discriminators
from megatron_videogpt.objective.tokenizer.losses import (
    decibels,
    distinct,
    fooling,
    hinge,
    level_use,
    pyramid,
)
from megatron_videogpt.objective.tokenizer.sizes import decoder, encoder
from tests.tokenizer import random_vgg16, video

CONFIG = Path(__file__).parents[1] / "parallel" / "tokenizer.toml"


def test_hinge_losses() -> None:
    """By hand: two videos, two discriminators of 2 and 1 patches."""
    real = [torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[0.0], [3.0]])]
    fake = [torch.tensor([[-2.0, 0.0], [1.0, -0.5]]), torch.tensor([[-1.0], [0.5]])]
    first = [((0 + 0.5) / 2 + (0 + 1) / 2) / 2, ((2 + 0) / 2 + (2 + 0.5) / 2) / 2]
    second = [(1 + 0) / 2, (0 + 1.5) / 2]
    torch.testing.assert_close(hinge(real, fake), torch.tensor([a + b for a, b in zip(first, second)]))
    torch.testing.assert_close(fooling(fake), torch.tensor([1.0 + 1.0, -0.25 - 0.5]))


def test_adaptive_weight() -> None:
    """The gradients of both losses are 3-4-5 triangles: the weight is factor * 5 / (13 + eps)."""
    from megatron_videogpt.objective.base import Balanced, Score
    from megatron_videogpt.train.step import balanced

    by = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    total, other = (by * torch.tensor([3.0, 4.0])).sum(), (by * torch.tensor([5.0, 12.0])).sum()
    score = Score(total, 1, torch.empty(0), torch.empty(0), balanced=(Balanced(other, by, 0.1),))
    (gradient,) = torch.autograd.grad(balanced(score), by)
    weight = 0.1 * 5 / (13 + 1e-4)
    torch.testing.assert_close(gradient, torch.tensor([3 + 5 * weight, 4 + 12 * weight]))


def test_gradient_of_the_quantizer(reference: Path) -> None:
    """Straight through the rounding, so that of tanh: (1 - tanh(z + s)^2) h / (l // 2); and the recorded one."""
    levels = (8, 5)
    z = torch.linspace(-2, 2, 14).view(1, 2, 7).requires_grad_()
    quantized(z, levels).sum().backward()
    for channel, level in enumerate(levels):
        half = (level - 1) * (1 - 0.001) / 2
        shift = math.tan((0.5 if level % 2 == 0 else 0) / half)
        wanted = (1 - torch.tanh(z.detach()[0, channel] + shift) ** 2) * half / (level // 2)
        torch.testing.assert_close(z.grad[0, channel], wanted)  # type: ignore[index]
    stored = load_file(reference / "nbp" / "fsq.safetensors")
    for case in json.loads((reference / "nbp" / "fsq.json").read_text(encoding="utf-8"))["cases"]:
        tensors: dict[str, Tensor] = {name: stored[entry["key"]] for name, entry in case["tensors"].items()}
        z = tensors["z"].clone().requires_grad_()
        (found,) = torch.autograd.grad(quantized(z, case["levels"]), z, tensors["grad_out"])
        torch.testing.assert_close(found, tensors["grad_z"], atol=1e-6, rtol=1e-6)


def test_pyramid_of_a_ramp() -> None:
    """An error that grows by a pixel across and b down: a scale that is halved sees twice as much of both."""
    across, down = 0.01, 0.002
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    real = video(2, 3, 5, 16, 16)
    ramp = across * columns + down * rows
    made = real + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1) * ramp + 0.3
    wanted = sum(2**scale * (across + down) / 2 for scale in range(4)) / 4
    torch.testing.assert_close(pyramid(made, real), torch.tensor([wanted, 0.0]), atol=1e-6, rtol=1e-4)


def test_numbers_of_a_clip() -> None:
    real = torch.zeros(1, 3, 1, 4, 4)
    # What is outside [0, 1] is clamped first.
    assert float(decibels(real + 0.1, real)) == pytest.approx(20, abs=1e-4) and float(decibels(real - 1, real)) == 100
    levels = (4, 3)
    all_of_them = torch.arange(12)
    digits = torch.stack([all_of_them % 4, all_of_them // 4])[None]
    assert float(distinct(digits, levels)) == 12 and float(level_use(digits, levels)) == pytest.approx(1)
    one = torch.zeros_like(digits)
    assert float(distinct(one, levels)) == 1 and float(level_use(one, levels)) == pytest.approx((1 / 4 + 1 / 3) / 2)
    # They count codes as the tokenizer numbers them.
    assert torch.equal(digits_of(codes_of(all_of_them[None], levels), levels), digits)


def test_discriminators_see_frames_alone_and_clips_whole() -> None:
    torch.manual_seed(0)
    net, clip = Discriminators(4, 4, 2), video(2, 3, 5, 16, 24)
    other = clip.clone()
    other[0, :, 4] = 1 - other[0, :, 4]
    with torch.no_grad():
        (frames, clips), (frames_, clips_) = net(clip), net(other)
    assert frames.shape[1] % 5 == 0
    torch.testing.assert_close(frames.view(2, 5, -1)[:, :4], frames_.view(2, 5, -1)[:, :4])
    assert (frames.view(2, 5, -1)[0, 4] != frames_.view(2, 5, -1)[0, 4]).any()
    assert (clips[0] != clips_[0]).float().mean() > 0.5
    torch.testing.assert_close(clips[1], clips_[1])
    # The shortest clip and the smallest picture leave something.
    assert all(len(logits[0]) for logits in Discriminators(2, 2, 3)(torch.zeros(1, 3, 1, 8, 8)))


def test_pieces_are_cut_where_something_moves() -> None:
    clip = torch.zeros(3, 5, 32, 24)
    clip[:, 3:, 21, 9] = 1
    for key in range(40):
        top, left = corner(clip, 16, 1.0, key)
        assert 0 <= top <= 16 and 0 <= left <= 8 and top <= 21 < top + 16 and left <= 9 < left + 16
    anywhere = {tuple(corner(clip, 16, 0.0, key)) for key in range(40)}
    assert len(anywhere) > 20 and {0, 16} <= {top for top, _ in anywhere} | {0, 16}
    videos = torch.rand(2, 3, 5, 32, 24)
    cut = pieces(Clips(videos, torch.arange(2), torch.tensor([[3, 8], [16, 0]])), 16)
    torch.testing.assert_close(cut, torch.stack([videos[0, :, :, 3:19, 8:24], videos[1, :, :, 16:32, :16]]))
    assert pieces(Clips(videos, torch.arange(2), torch.zeros(2, 2).long()), 0) is videos


def test_rows_keep_videos_of_any_size_and_know_when_the_adversary_starts() -> None:
    config = load_config(CONFIG)
    objective = build_objective(config)
    samples = [
        Sample(number, str(number), 2 * torch.rand(frames, 3, 16, side) - 1, None, (frames,), number=number)
        for number, frames, side in ((18, 5, 16), (19, 1, 24), (20, 5, 16))
    ]
    row = objective.prepare(samples, 4)
    groups = list(clips_of(row))
    assert [part.members.tolist() for part in groups] == [[0, 2], [1]] and row.length == 24
    torch.testing.assert_close(groups[0].videos[1] * 2 - 1, samples[2].mean.transpose(0, 1))
    # Five steps of four samples come before.
    assert "adversary" not in row.context and "adversary" in objective.prepare(samples[2:], 1).context
    assert grouped([], []) == {}


@pytest.mark.parametrize(("width", "units", "levels", "count"), [(128, 4, 6, 370_372_105), (4, 1, 3, None)])
def test_sizes_are_those_of_the_network(width: int, units: int, levels: int, count: int | None) -> None:
    """The published number of parameters; torch's own counts of parameters and FLOPs."""
    sizes = width, units, levels, (9, 16, 24)
    found = encoder(*sizes) + decoder(*sizes)
    total = sum(layer.parameters for layer in found)
    if count is not None:
        assert total == count
        return
    net = FSQTokenizer(FSQShape(width, 2, units, (5,) * levels))
    assert total == sum(parameter.numel() for parameter in net.parameters())
    with FlopCounterMode(display=False) as counter:
        net.pixels(net.features(video(1, 3, 9, 16, 24)))
    assert 2 * sum(layer.multiplications for layer in found) == counter.get_total_flops()
    config = load_config(CONFIG, ["objective.crop=8"])
    assert work_of(config, build_codec(config.codec)).expected((16, 16)).tokens == 2
    counts = component_parameters(parameter_table(config), config.model, 3)
    halves = {"tokenizer.encoder": net.encoder_layers, "tokenizer.decoder": net.decoder_layers}
    assert counts == {name: sum(x.numel() for x in half.parameters()) for name, half in halves.items()}


def test_lpips_is_its_formula(tmp_path: Path) -> None:
    """Against a second writing of it, with random weights of VGG-16 and the heads that come with torchmetrics."""
    weights = random_vgg16()
    save_file(weights, tmp_path / "vgg16.safetensors")
    net = LPIPS(VGG16)
    net.load(tmp_path)
    made, real = video(2, 3, 16, 16, seed=1), video(2, 3, 16, 16, seed=2)
    total = torch.zeros(2)
    one, other = (
        (2 * x - 1 - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1) for x in (made, real)
    )
    for number, group in enumerate(VGG16.groups):
        for layer in group:
            kernel, bias = (weights[f"features.{layer.place}.{kind}"] for kind in ("weight", "bias"))
            one, other = (F.conv2d(x, kernel, bias, padding=1).clamp(min=0) for x in (one, other))
        error = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square()
        total += (error.mean((2, 3)) * net.heads[number]).sum(1)
        one, other = (F.max_pool2d(x, 2) if number < 4 else x for x in (one, other))
    with torch.no_grad():
        torch.testing.assert_close(net(made, real), total, rtol=1e-4, atol=1e-6)
        assert not net(real, real).any()
        # Of what holds the place of nothing, too.
        assert float(net(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))) > 0
    del weights["features.28.bias"]
    save_file(weights, tmp_path / "vgg16.safetensors")
    with pytest.raises(UserError, match="features.28.bias"):
        net.load(tmp_path)
    (tmp_path / "vgg16.safetensors").unlink()
    with pytest.raises(UserError, match="holds no vgg16"):
        net.load(tmp_path)


def test_pixels_pass_through_their_codec() -> None:
    codec, clip = build_codec(CodecConfig("pixels")), 2 * torch.rand(5, 3, 16, 24) - 1
    mean, logvar = codec.encode(clip)
    assert logvar is None and torch.equal(mean, clip) and torch.equal(codec.decode(mean), clip)
    assert (codec.channels, codec.spatial_stride, codec.temporal_stride) == (3, 1, 1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.tensor=2", "parallel.tensor"),
        ("parallel.context=2", "parallel.context"),
        ("parallel.pipeline=2", "parallel.pipeline"),
        ("codec.name=tiny data.physics.size=64", "codec.name=pixels"),
        ("model.patch_size=2", "model.patch_size"),
        ("data.frames=6", "use 5"),
        ("objective.groups=3", "divide objective.width = 4"),
        ("objective.feature=lpips", "objective.lpips_path"),
        ("objective.lpips_path=/", "objective.lpips_path"),
        ("objective.crop=12", "multiple of 8"),
        ("objective.moving=0.5", "objective.moving"),
        ("optimizer.ema_decay=0.9", "objective.decay"),
        ("objective.decay=1.0", "objective.decay"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, words: str) -> None:
    problems = find_problems(load_config(CONFIG, override.split()), 2)
    assert len(problems) == 1 and words in problems[0], problems


def test_the_metrics_are_those_of_what_is_learned() -> None:
    def names(*overrides: Any) -> set[str]:
        return {metric.name for metric in build_objective(load_config(CONFIG, list(overrides))).metrics}

    assert {"feature", "fooling", "logits_real"} <= names()
    assert not {"fooling", "logits_real", "right_on_fake"} & names("objective.adversarial=0.0")
    assert "feature" not in names("objective.feature=none")
