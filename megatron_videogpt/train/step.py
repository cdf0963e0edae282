"""One optimizer step, and one validation pass, through megatron-core's schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ..objective.base import Objective
from ..platforms import compat
from ..sequence.row import Inputs
from .optimizer import update

NOISE_BINS = 5
"""Equal bins of the timestep, [0, 0.2) to [0.8, 1], for the loss by noise level."""


@dataclass(frozen=True)
class Statistics:
    """Sums on the device, so that micro-batches, steps and ranks add up.

    losses: float32 ``[1 + bins]``, the sum of the loss, then that of each noise bin; frames: int64 ``[1 + bins]``, how many these are.  Not float64,
    which Ascend's collectives refuse.
    """

    losses: Tensor
    frames: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.losses + other.losses, self.frames + other.frames)

    def only_if(self, taken: Tensor) -> Statistics:
        """These if `taken`, a bool ``[]`` on the device; else zeros."""
        return Statistics(self.losses.masked_fill(~taken, 0.0), self.frames.masked_fill(~taken, 0))

    def numbers(self) -> list[float]:
        """On the host, which waits for them: see `ordered`."""
        return ordered([*self.losses.tolist(), *self.frames.tolist()])


def ordered(numbers: list[float]) -> list[float]:
    """Losses and frames of `Statistics` in a row -> loss sum, frames, then the loss sums and then the frames of the noise bins, as in ``state.json``."""
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


def describe(numbers: list[float]) -> dict[str, float]:
    """Summed `Statistics.numbers` as named means; what no frame counts to is left out."""
    named = {"loss": numbers[0] / numbers[1]} if numbers[1] else {}
    sums, counts = numbers[2 : 2 + NOISE_BINS], numbers[2 + NOISE_BINS :]
    for place, (loss, frames) in enumerate(zip(sums, counts)):
        if frames:
            named[f"loss_t{place / NOISE_BINS:.1f}-{(place + 1) / NOISE_BINS:.1f}"] = loss / frames
    return named


def run_schedule(chunks: list[Any], objective: Objective, rows: list[Inputs], forward_only: bool) -> Statistics:
    """Forward (and backward) over the micro-batches of this rank; returns this rank's summed `statistics` (zeros off the last stage).

    chunks: the model chunks of this rank, one but for interleaved pipelines.  Those work through their micro-batches in groups of one per pipeline
    rank; a forward pass fills the last group with copies that are not counted.
    """
    real = len(rows)
    if len(chunks) > 1:
        missing = -real % parallel_state.get_pipeline_model_parallel_world_size()
        assert forward_only or not missing
        rows = rows + rows[:1] * missing

    def forward_step(data: Iterator[tuple[int, Inputs]], stage: Any) -> tuple[Tensor, Any]:
        number, inputs = next(data)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Statistics]:
            total, count, per_frame = objective.loss(output, inputs)
            values = statistics(total, count, per_frame, inputs) if number < real else empty_statistics(total.device)
            return total, torch.full((), count, dtype=torch.int, device=total.device), values

        return stage(inputs), loss

    compat.expect_lengths(chunks, {row.length for row in rows})
    iterators = [iter(enumerate(rows)) for _ in chunks]
    stored = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks,
        num_microbatches=len(rows),
        seq_length=max(row.length for row in rows),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return sum(stored[1:], stored[0]) if stored else empty_statistics(rows[0].positions.device)


class Step(NamedTuple):
    """What became of an optimizer step, on the device, which may still be at work on it.

    totals: this rank's `statistics`, zeros of a step that was not taken; norm: of the gradient, float32 ``[]``; taken: bool ``[]``; scored: bool ``[]``,
    whether any sample on any rank could be read.  But for the totals, the same on every rank.
    """

    totals: Statistics
    norm: Tensor
    taken: Tensor
    scored: Tensor


def train_step(
    chunks: list[Any], optimizer: Any, objective: Objective, rows: list[Inputs], clip: float = 1.0, limit: Callable[[], float] = lambda: math.inf
) -> Step:
    """Queue one optimizer step over this rank's micro-batches on the device; the host waits for nothing.

    rows: this context parallel rank's shards.  clip: largest gradient norm, 0 for none.  limit: the largest norm of a step that is taken; asked for when
    forward and backward pass are queued, so that the device has work while the host waits for the numbers of the step before.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    totals = run_schedule(chunks, objective, rows, forward_only=False)
    norm, taken, scored = update(optimizer, clip, limit(), totals.frames[0])
    return Step(totals.only_if(taken), norm, taken, scored)


def reduce_statistics(values: Statistics) -> Statistics:
    """Sum over data and context parallel ranks, the same on every rank of every pipeline stage."""
    summed = Statistics(values.losses.clone(), values.frames.clone())
    last, stages = parallel_state.get_pipeline_model_parallel_last_rank(), parallel_state.get_pipeline_model_parallel_group()
    for part in (summed.losses, summed.frames):
        torch.distributed.all_reduce(part, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.broadcast(part, last, group=stages)
    return summed
