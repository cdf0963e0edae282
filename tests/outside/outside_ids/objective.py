"""Each token predicts the id at its place in the next block; ids come from a frozen quantizer of the latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from megatron_videogpt.objective.base import Metric, Score, Turn
from megatron_videogpt.sequence.intervals import padding_intervals, shift
from megatron_videogpt.sequence.row import Mask, Row, Stream

from .sequence import ends


@dataclass(frozen=True)
class Ids:
    """See `objective.base.Objective`."""

    block: int
    unit: str = "token"
    loss_label: str = "cross entropy"
    metrics: tuple[Metric, ...] = (Metric("accuracy", "accuracy", "right"),)

    def length(self, sample: Any) -> int:
        """See `Objective`."""
        return sample.mean[:, 0].numel() - self.block

    def prepare(self, samples: list[Any], multiple: int) -> Row:
        """See `Objective`."""
        cells = [sample.mean.permute(0, 2, 3, 1).flatten(0, 2) for sample in samples]
        counts = [len(one) - self.block for one in cells]
        total, masks, start = sum(counts), [], 0
        for count in counts:
            seen = ends(count, self.block)
            masks.append(
                shift(torch.stack([torch.zeros_like(seen), seen, *[torch.zeros_like(seen)] * 2], dim=1), start)
            )
            start += count
        padding = -total % multiple
        counted = torch.tensor([float(sample.scored) for sample in samples]).repeat_interleave(torch.tensor(counts))
        latents = {
            "latent": torch.cat([one[: -self.block] for one in cells]),
            "next": torch.cat([one[self.block :] for one in cells]),
        }
        return Row(
            masks=(Mask(torch.cat([*masks, padding_intervals(total, padding)])),),
            positions=torch.cat([*(torch.arange(count) for count in counts), torch.zeros(padding, dtype=torch.int64)]),
            streams={"token": Stream(torch.arange(total), latents)},
            scored="token",
            target=torch.zeros(total, dtype=torch.int64),
            weight=counted,
            counted=counted,
            count=int(counted.sum()),
        )

    def given(self, row: Row, turn: Turn) -> Row:
        """Ids in place of latents."""
        quantizer, tokens = turn.networks["quantizer"], row.streams["token"]
        token = replace(tokens, values={"id": quantizer(tokens["latent"])})
        return replace(row, streams={"token": token}, target=quantizer(tokens["next"]))

    def score(self, output: Tensor, row: Row, turn: Turn) -> Score:
        """Output: this tensor parallel rank's part of the vocabulary ``[n, V/TP]``; no rank ever holds all of it."""
        loss = vocab_parallel_cross_entropy(output.unsqueeze(1), row.target.unsqueeze(1))[:, 0] * row.weight
        right = self._right(output.detach(), row.target) * row.weight
        return Score(loss.sum(), row.count, right.sum().view(1), row.counted.sum().long().view(1))

    def _right(self, logits: Tensor, target: Tensor) -> Tensor:
        rank, group = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_group()
        local = target - rank * logits.shape[1]
        here = (local >= 0) & (local < logits.shape[1])
        wanted = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0].masked_fill(~here, -torch.inf)
        best = torch.stack([wanted, logits.max(dim=1).values])
        torch.distributed.all_reduce(best, op=torch.distributed.ReduceOp.MAX, group=group)
        return (best[0] >= best[1]).float()


def build(config: Any) -> Ids:
    """See `objective.build`."""
    return Ids(config.objective.block)
