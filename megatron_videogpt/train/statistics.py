"""Sums of the loss, overall and by noise level, that micro-batches, steps and ranks add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from ..sequence.row import Inputs

NOISE_BINS = 5
"""Equal bins of the timestep, [0, 0.2) to [0.8, 1], for the loss by noise level."""


@dataclass(frozen=True)
class Statistics:
    """Sums on the device, so that micro-batches, steps and ranks add up.

    losses: float32 ``[1 + bins]``, the sum of the loss, then that of each noise bin; frames: int64 ``[1 + bins]``, how
    many these are.  Not float64, which Ascend's collectives refuse.
    """

    losses: Tensor
    frames: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.losses + other.losses, self.frames + other.frames)

    def masked(self, taken: Tensor) -> Statistics:
        """These if `taken`, a bool ``[]`` on the device; else zeros."""
        return Statistics(self.losses.masked_fill(~taken, 0.0), self.frames.masked_fill(~taken, 0))

    def numbers(self) -> list[float]:
        """On the host, which waits for them: see `flat_numbers`."""
        return flat_numbers([*self.losses.tolist(), *self.frames.tolist()])


def flat_numbers(numbers: list[float]) -> list[float]:
    """Losses and frames of `Statistics` in a row -> loss sum, frames, then the loss sums and then the frames of the
    noise bins, as in ``state.json``.
    """
    losses, frames = numbers[: 1 + NOISE_BINS], numbers[1 + NOISE_BINS :]
    return [losses[0], float(frames[0]), *losses[1:], *map(float, frames[1:])]


def statistics(total: Tensor, count: int, per_frame: Tensor, inputs: Inputs) -> Statistics:
    """Of one row, or of a shard of one: its loss, frames and loss per frame as the objective gives them."""
    place = (inputs.timestep * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    # Not index_add, which adds in another order, and so to other last digits, in every run on a GPU.
    other = place != torch.arange(NOISE_BINS, device=place.device)[:, None]
    # A later shard of a row adds to the loss of frames that the first one counts.
    losses = per_frame.detach().float().expand(other.shape).masked_fill(other, 0.0).sum(dim=1)
    frames = inputs.counted.long().expand(other.shape).masked_fill(other, 0).sum(dim=1)
    whole = torch.full((1,), count, dtype=torch.int64, device=total.device)
    return Statistics(torch.cat([total.detach().float().view(1), losses]), torch.cat([whole, frames]))


def empty_statistics(device: torch.device) -> Statistics:
    """`statistics` of nothing."""
    zeros = torch.zeros(1 + NOISE_BINS, device=device)
    return Statistics(zeros, zeros.long())


def named_means(numbers: list[float]) -> dict[str, float]:
    """Summed `Statistics.numbers` as named means; what no frame counts to is left out."""
    named = {"loss": numbers[0] / numbers[1]} if numbers[1] else {}
    sums, counts = numbers[2 : 2 + NOISE_BINS], numbers[2 + NOISE_BINS :]
    for place, (loss, frames) in enumerate(zip(sums, counts)):
        if frames:
            named[f"loss_t{place / NOISE_BINS:.1f}-{(place + 1) / NOISE_BINS:.1f}"] = loss / frames
    return named


def reduce_statistics(values: Statistics) -> Statistics:
    """Sum over data and context parallel ranks, the same on every rank of every pipeline stage."""
    summed = Statistics(values.losses.clone(), values.frames.clone())
    last, stages = (
        parallel_state.get_pipeline_model_parallel_last_rank(),
        parallel_state.get_pipeline_model_parallel_group(),
    )
    for part in (summed.losses, summed.frames):
        torch.distributed.all_reduce(part, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.broadcast(part, last, group=stages)
    return summed
