"""Training of a tokenizer and its discriminators once more, in plain PyTorch on tensors by name: what a run must come
to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import conv3d

from megatron_videogpt.config.schema import Config
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape
from tests.tokenizer import Twin

State = dict[str, Tensor]


class Differentiable(Twin):
    """Edges repeated by indices, through which gradients go."""

    def _conv(self, name: str, x: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        name += ".conv" if f"{name}.conv.weight" in self.state else ""
        weight = self.state[f"{name}.weight"]
        if weight.shape[-1] == 3:
            for axis, before, after in ((2, 2, 0), (3, 1, 1), (4, 1, 1)):
                size = x.shape[axis]
                x = x.index_select(axis, torch.arange(-before, size + after).clamp(0, size - 1))
        return conv3d(x, weight, self.state[f"{name}.bias"], stride)


def rounded(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes, with the gradient of what is rounded."""
    found = []
    for channel, level in enumerate(levels):
        half = (level - 1) * 0.999 / 2
        offset = 0.5 * (level % 2 == 0)
        inside = torch.tanh(z[:, channel] + math.tan(offset / half)) * half - offset
        found.append((inside + (inside.round() - inside).detach()) / (level // 2))
    return torch.stack(found, 1)


def edges(made: Tensor, real: Tensor) -> Tensor:
    """The pyramid's loss of each video, for sides of 16: four scales."""
    total = torch.zeros(len(made))
    for scale in range(4):
        error = F.avg_pool3d(made - real, (1, 2**scale, 2**scale))
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        total = total + (across.abs().mean((1, 2, 3, 4)) + down.abs().mean((1, 2, 3, 4))) / 8
    return total


def told(d: State, video: Tensor) -> Iterator[Tensor]:
    """Of each discriminator its logits ``[b, patches]``: one layer that halves, one that keeps the size, no more
    (`objective.layers` = 1).
    """
    x = 2 * video - 1
    for kind, conv in (("frames", F.conv2d), ("clips", F.conv3d)):
        y = x.transpose(1, 2).reshape(-1, *x.shape[1:2], *x.shape[3:]) if kind == "frames" else x
        y = F.leaky_relu(conv(y, d[f"{kind}.0.weight"], d[f"{kind}.0.bias"], stride=2, padding=2), 0.2)
        y = conv(y, d[f"{kind}.2.weight"], d[f"{kind}.2.bias"], padding=2)
        channels = y.shape[1]
        y = F.group_norm(y, math.gcd(32, channels), d[f"{kind}.3.weight"], d[f"{kind}.3.bias"])
        y = conv(F.leaky_relu(y, 0.2), d[f"{kind}.5.weight"], d[f"{kind}.5.bias"], padding=2)
        yield y.reshape(len(video), -1)


class Trainer:
    """Both networks, their optimizers and the average; `step` takes one of each and says what a run logs."""

    def __init__(self, config: Config, tokenizer: nn.Module, discriminators: nn.Module) -> None:
        self.config, options = config, config.objective
        self.shape = FSQShape(options.width, options.groups, options.units, options.levels)
        self.g, self.d = (
            {name: value.detach().clone().requires_grad_() for name, value in net.state_dict().items()}
            for net in (tokenizer, discriminators)
        )
        self.average = {name: value.detach().clone() for name, value in self.g.items()}
        shared: Any = {"betas": config.optimizer.betas, "eps": config.optimizer.eps, "weight_decay": 0.0}
        self.rates = config.optimizer.lr, options.discriminator_lr
        self.optimizers = [
            torch.optim.AdamW(list(net.values()), lr=rate, **shared) for net, rate in zip((self.g, self.d), self.rates)
        ]

    def rebuilt(self, video: Tensor) -> Tensor:
        twin = Differentiable(self.g, self.shape)
        return twin.decode(rounded(twin.encode(video), self.shape.levels))

    def step(self, number: int, rows: list[Tensor]) -> dict[str, float]:
        """rows: of micro-batches the videos ``[b, 3, F, H, W]`` in [0, 1]."""
        options, count = self.config.objective, sum(map(len, rows))
        learns, last = number >= options.start, self.g[f"decoder_layers.{self.last}.conv.weight"]
        names = ["l1", "l2", "feature", "loss", *(["fooling"] if learns else [])]
        line, total = dict.fromkeys(names, 0.0), torch.zeros(())
        for video in rows:
            made = self.rebuilt(video)
            error = (made - video).flatten(1)
            parts = {"l1": error.abs().mean(1), "l2": error.square().mean(1), "feature": edges(made, video)}
            loss = (options.l1 * parts["l1"] + options.l2 * parts["l2"]).sum()
            loss = loss + options.feature_weight * parts["feature"].sum()
            total = total + loss
            if learns:
                fool = -torch.stack([logits.mean(1).sum() for logits in told(self.d, made)]).sum()
                own, other = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (loss, fool))
                total = total + options.adversarial * own / (other + 1e-4) * fool
                line["fooling"] += float(fool.detach()) / count
            line["loss"] += float(loss.detach()) / count
            for name, values in parts.items():
                line[name] += float(values.detach().sum()) / count
        line["grad_norm"] = self._update(0, self.g, total / count, number)
        return line | self._against(number, rows, learns, count)

    def _against(self, number: int, rows: list[Tensor], learns: bool, count: int) -> dict[str, float]:
        """The discriminators' turn: before they start, a step with gradients of zero."""
        line, total = {"right_on_real": 0.0, "right_on_fake": 0.0}, torch.zeros(())
        total = total + torch.stack([0 * value.sum() for value in self.d.values()]).sum()
        for video in rows if learns else []:
            pairs = list(zip(told(self.d, video), told(self.d, self.rebuilt(video).detach())))
            for real, fake in pairs:
                total = total + (F.relu(1 - real).mean(1) + F.relu(1 + fake).mean(1)).sum() / 2
                line["right_on_real"] += float((real > 0).float().mean(1).sum()) / count / 2
                line["right_on_fake"] += float((fake < 0).float().mean(1).sum()) / count / 2
        line = line if learns else {}
        line["discriminator_loss"] = float(total.detach()) / count
        line["discriminator_grad_norm"] = self._update(1, self.d, total / count, number)
        for name, value in self.average.items():
            value.lerp_(self.g[name].detach(), 1 - self.config.objective.decay)
        return line

    @property
    def last(self) -> int:
        """Number of the decoder's last layer."""
        return max(int(name.split(".")[1]) for name in self.g if name.startswith("decoder_layers."))

    def _update(self, which: int, net: State, loss: Tensor, number: int) -> float:
        """AdamW at this step's rate, gradients clipped at a norm of 1; returns the norm before."""
        options, steps = self.config.optimizer, self.config.train.steps
        gradients = torch.autograd.grad(loss, list(net.values()))
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        for parameter, gradient in zip(net.values(), gradients):
            parameter.grad = gradient * min(1.0, options.clip_grad / (norm + 1e-6))
        warm = options.warmup_steps
        share = (number + 1) / warm if number < warm else 1 - (number - warm) / (steps - warm - 1)
        for group in self.optimizers[which].param_groups:
            group["lr"] = self.rates[which] * share
        self.optimizers[which].step()
        return norm
