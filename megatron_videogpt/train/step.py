"""One optimizer step, and one validation pass, through megatron-core's schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ..objective.base import Inputs, Objective
from ..platforms import compat
from .optimizer import update

NOISE_BINS = 5
"""Equal bins of the timestep, [0, 0.2) to [0.8, 1], for the loss by noise level."""


def statistics(total: Tensor, count: int, per_frame: Tensor, inputs: Inputs) -> Tensor:
    """``[2 + 2*bins]`` float64: loss sum, frames, then per noise bin the loss sum and the frames.  Sums, so that micro-batches and ranks add up."""
    place = (inputs.timestep * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    bins = torch.zeros(2, NOISE_BINS, dtype=torch.float64, device=per_frame.device)
    # A later shard of a row adds to the loss of frames that the first one counts.
    bins.index_add_(1, place, torch.stack([per_frame.double(), inputs.counted.double()]))
    head = torch.stack([total.detach().double(), torch.full((), float(count), dtype=torch.float64, device=total.device)])
    return torch.cat([head, bins.flatten()])


def empty_statistics(device: torch.device) -> Tensor:
    """`statistics` of nothing."""
    return torch.zeros(2 + 2 * NOISE_BINS, dtype=torch.float64, device=device)


def describe(values: Tensor) -> dict[str, float]:
    """Summed `statistics` as named means; what no frame counts to is left out."""
    numbers = values.tolist()
    named = {"loss": numbers[0] / numbers[1]} if numbers[1] else {}
    sums, counts = numbers[2 : 2 + NOISE_BINS], numbers[2 + NOISE_BINS :]
    for place, (loss, frames) in enumerate(zip(sums, counts)):
        if frames:
            named[f"loss_t{place / NOISE_BINS:.1f}-{(place + 1) / NOISE_BINS:.1f}"] = loss / frames
    return named


def run_schedule(chunks: list[Any], objective: Objective, rows: list[Inputs], forward_only: bool) -> Tensor:
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

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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

    totals: this rank's `statistics`, zeros of a step that was not taken; norm: of the gradient, float64 ``[]``, and taken: bool ``[]``, same on every rank.
    """

    totals: Tensor
    norm: Tensor
    taken: Tensor


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
    norm, taken = update(optimizer, clip, limit())
    return Step(totals.masked_fill(~taken, 0.0), norm, taken)


def reduce_statistics(values: Tensor) -> Tensor:
    """Sum over data and context parallel ranks, the same on every rank of every pipeline stage."""
    values = values.clone()
    torch.distributed.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(values, parallel_state.get_pipeline_model_parallel_last_rank(), group=parallel_state.get_pipeline_model_parallel_group())
    return values
