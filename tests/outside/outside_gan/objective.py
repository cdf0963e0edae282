"""A generator puts right latents to which noise was added; a discriminator tells what it makes from the latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.objective.base import Balanced, Metric, Score, Turn
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.sequence.intervals import padding_intervals
from megatron_videogpt.sequence.row import Mask, Row, Stream


@dataclass(frozen=True)
class Gan:
    """See `objective.base.Objective`."""

    adversarial: float
    unit: str = "video"
    loss_label: str = "mean squared error"
    metrics: tuple[Metric, ...] = (
        Metric("fooled", "adversary", "taken for real"),
        Metric("right_on_real", "adversary", "real taken for real", part="discriminator"),
        Metric("right_on_fake", "adversary", "fake taken for fake", part="discriminator"),
    )

    def length(self, sample: Any) -> int:
        """See `Objective`."""
        return sample.mean[:, 0].numel()

    def prepare(self, samples: list[Any], multiple: int) -> Row:
        """See `Objective`."""
        real = [sample.mean.permute(0, 2, 3, 1).flatten(0, 2) for sample in samples]
        noisy = [x + normal(sample.key, "noise", tuple(x.shape)) for x, sample in zip(real, samples)]
        counts = torch.tensor([len(x) for x in real])
        count, padding = int(counts.sum()), int(-counts.sum() % multiple)
        own = torch.arange(count, dtype=torch.int32)
        mask = torch.stack([own, own + 1, torch.zeros_like(own), torch.zeros_like(own)], dim=1)
        counted = torch.tensor([float(sample.scored) for sample in samples])
        return Row(
            masks=(Mask(torch.cat([mask, padding_intervals(count, padding)])),),
            positions=torch.arange(count + padding),
            streams={"cell": Stream(torch.arange(count), {"noisy": torch.cat(noisy)})},
            scored="cell",
            target=torch.cat(real),
            weight=(counted / counts).repeat_interleave(counts),
            counted=counted,
            count=int(counted.sum()),
        )

    def given(self, row: Row, turn: Turn) -> Row:
        """The discriminator gets what the generator makes of the row."""
        if turn.first:
            return row
        with torch.no_grad():
            fake = turn.networks["generator"](row)
        cells = row.streams["cell"]
        return replace(row, streams={"cell": replace(cells, values={**cells.values, "fake": fake})})

    def score(self, output: Any, row: Row, turn: Turn) -> Score:
        """See `Objective`."""
        counts = row.counted.sum().long()
        if not turn.first:
            real, fake = output
            loss = (F.relu(1 - real) + F.relu(1 + fake)) * row.weight
            right = torch.stack([((real > 0) * row.weight).sum(), ((fake < 0) * row.weight).sum()])
            return Score(loss.sum(), row.count, right, counts.expand(2))
        error = ((output - row.target).square().mean(dim=-1) * row.weight).sum()
        logits: Tensor = turn.networks["discriminator"].logits(output)  # type: ignore[operator]
        by: Any = turn.networks["generator"].last.weight  # type: ignore[union-attr]
        fooled = ((logits.detach() > 0) * row.weight).sum().view(1)
        adversary = Balanced(-(logits * row.weight).sum(), by, self.adversarial)
        return Score(error, row.count, fooled, counts.view(1), balanced=(adversary,))


def build(config: Any) -> Gan:
    """See `objective.build`."""
    return Gan(config.objective.adversarial)
