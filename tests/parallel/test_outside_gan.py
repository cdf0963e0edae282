"""An objective of another distribution with two networks that train each other, and an average: against plain torch, in
two layouts, over a resume in another one; our package has no objective of its own there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.objective.noise import generator, normal
from tests.loading import loader_of
from tests.outside.site import TINY, lines, make, train

STEPS, BATCH, MICRO, WIDTH, ADVERSARIAL = 4, 4, 2, 24, 0.5
DATA = (f"train.global_batch_size={BATCH}", f"train.micro_batch_size={MICRO}")
COMMON = (
    *DATA,
    "objective.name=outside_gan",
    "optimizer.schedule=constant",
    "checkpoint.every=2",
    "optimizer.eps=1e-3",
)


def start(kind: str, channels: int, outputs: int) -> dict[str, Tensor]:
    """Start values of a network."""
    shapes = {
        "first.weight": (WIDTH, channels),
        "first.bias": (WIDTH,),
        "last.weight": (outputs, WIDTH),
        "last.bias": (outputs,),
    }
    return {
        name: (0.3 * torch.randn(shape, generator=generator(0, f"{kind} {name}"))).requires_grad_()
        for name, shape in shapes.items()
    }


def through(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w["first.weight"], w["first.bias"])), w["last.weight"], w["last.bias"])


def adam(w: dict[str, Tensor], rate: float) -> torch.optim.AdamW:
    groups = [{"params": [p for p in w.values() if (p.dim() > 1) == matrix]} for matrix in (True, False)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.1, 0.0  # type: ignore[typeddict-item]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-3)


def mean(values: Tensor, sizes: list[int]) -> Tensor:
    """Summed over videos, of the mean of each."""
    return torch.stack([part.mean() for part in values.split(sizes)]).sum()


def twin() -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Numbers of each step, and the average of the generator's weights at the end."""
    config = load_config(TINY, DATA)
    codec = build_codec(config.codec)
    source = loader_of(open_source(config.data, codec), codec, config)
    g, d = start("Generator", codec.channels, codec.channels), start("Discriminator", codec.channels, 1)
    # It starts from the generator's weights, not from its own.
    average = {name: value.detach().clone() for name, value in g.items()}
    optimizers, numbers = (adam(g, 3e-3), adam(d, 2e-3)), []
    for step in range(STEPS):
        rows = []
        for row in next(source):
            real = [sample.mean.permute(0, 2, 3, 1).flatten(0, 2) for sample in row.samples]
            noise = [normal(sample.key, "noise", tuple(x.shape)) for x, sample in zip(real, row.samples)]
            rows.append((torch.cat(real), torch.cat(real) + torch.cat(noise), [len(x) for x in real]))
        line = one_step(g, d, rows, optimizers, (step + 1) / 2 if step < 2 else 1.0)
        for name, value in average.items():
            value.lerp_(g[name].detach(), 0.5)
        numbers.append(line)
    source.close()
    return numbers, average


def one_step(g: Any, d: Any, rows: Any, optimizers: Any, warm: float) -> dict[str, float]:
    """The generator's turn, then the discriminator's, which sees what the generator makes by then."""
    line = dict.fromkeys(("loss", "fooled", "discriminator_loss", "right_on_real", "right_on_fake"), 0.0)
    total = torch.zeros(())
    for real, noisy, sizes in rows:
        made = through(g, noisy)
        error, adversary = mean((made - real).square().mean(1), sizes), -mean(through(d, made)[:, 0], sizes)
        own, other = (torch.autograd.grad(x, g["last.weight"], retain_graph=True)[0].norm() for x in (error, adversary))
        total = total + error + ADVERSARIAL * own / (other + 1e-4) * adversary
        line["loss"] += float(error.detach()) / BATCH
        line["fooled"] += float(mean((through(d, made)[:, 0] > 0).float(), sizes)) / BATCH
    line["grad_norm"] = update(optimizers[0], g, total / BATCH, 3e-3 * warm, 1.0)
    total = torch.zeros(())
    for real, noisy, sizes in rows:
        says = [through(d, x)[:, 0] for x in (real, through(g, noisy).detach())]
        total = total + mean(F.relu(1 - says[0]) + F.relu(1 + says[1]), sizes)
        line["right_on_real"] += float(mean((says[0] > 0).float(), sizes)) / BATCH
        line["right_on_fake"] += float(mean((says[1] < 0).float(), sizes)) / BATCH
    line["discriminator_loss"] = float(total.detach()) / BATCH
    line["discriminator_grad_norm"] = update(optimizers[1], d, total / BATCH, 2e-3 * warm, 0.0)
    return line


def update(optimizer: Any, w: dict[str, Tensor], loss: Tensor, rate: float, clip: float) -> float:
    gradients = torch.autograd.grad(loss, list(w.values()))
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    for parameter, gradient in zip(w.values(), gradients):
        parameter.grad = gradient * (min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DP2 all the way; DP2 and then CP2, over a checkpoint."""
    folder = tmp_path_factory.mktemp("gan")
    site = make(folder / "site", "outside_gan")
    assert not (site / "megatron_videogpt" / "objective" / "next_clip").exists()
    resumed = (*COMMON, f"train.output={folder / 'resumed'}")
    train(
        site,
        2,
        [
            (*COMMON, f"train.output={folder / 'whole'}", f"train.steps={STEPS}"),
            (*resumed, "train.steps=2"),
            (*resumed, f"train.steps={STEPS}", "parallel.context=2"),
        ],
    )
    return folder


@pytest.fixture(scope="module")
def expected() -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    return twin()


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_both_networks_are_those_of_plain_torch(runs: Path, expected: Any, run: str) -> None:
    found = lines(runs / run)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line, wanted in zip(found, expected[0]):
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (line["step"], name)
    assert found[-1]["discriminator_learning_rate"] == 2e-3 and found[-1]["learning_rate"] == 3e-3
    assert len({line["loss"] for line in found}) == STEPS and (runs / run / "loss.png").is_file()


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_the_average_follows_the_generator(runs: Path, expected: Any, run: str, processes: None) -> None:
    from megatron.core import dist_checkpointing

    newest = runs / run / "checkpoints" / "step_00000004"
    assert json.loads((newest / "state.json").read_text())["parts"] == ["discriminator", "average"]
    held = dist_checkpointing.load_plain_tensors(str(newest))
    for name, value in expected[1].items():
        torch.testing.assert_close(held[f"parts.average.{name}"], value, rtol=1e-5, atol=1e-6)
