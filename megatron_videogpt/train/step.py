"""One optimizer step, and one validation pass, through megatron-core's schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ..objective.base import Inputs, Objective

NOISE_BINS = 5
"""Equal bins of the timestep, [0, 0.2) to [0.8, 1], for the loss by noise level."""


def statistics(total: Tensor, count: int, per_frame: Tensor, timestep: Tensor) -> Tensor:
    """``[2 + 2*bins]`` float64: loss sum, frames, then per noise bin the loss sum and the frames.  Sums, so that micro-batches and ranks add up."""
    place = (timestep * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    bins = torch.zeros(2, NOISE_BINS, dtype=torch.float64, device=per_frame.device)
    bins.index_add_(1, place, torch.stack([per_frame.double(), torch.ones_like(per_frame, dtype=torch.float64)]))
    head = torch.stack([total.detach().double(), torch.tensor(float(count), dtype=torch.float64, device=total.device)])
    return torch.cat([head, bins.flatten()])


def empty_statistics(device: torch.device) -> Tensor:
    """`statistics` of nothing."""
    return torch.zeros(2 + 2 * NOISE_BINS, dtype=torch.float64, device=device)


def describe(values: Tensor) -> dict[str, float]:
    """Summed `statistics` as named means; empty noise bins are left out."""
    numbers = values.tolist()
    named = {"loss": numbers[0] / max(1.0, numbers[1])}
    sums, counts = numbers[2 : 2 + NOISE_BINS], numbers[2 + NOISE_BINS :]
    for place, (loss, frames) in enumerate(zip(sums, counts)):
        if frames:
            named[f"loss_t{place / NOISE_BINS:.1f}-{(place + 1) / NOISE_BINS:.1f}"] = loss / frames
    return named


def run_schedule(model: Any, objective: Objective, rows: list[Inputs], forward_only: bool) -> Tensor:
    """Forward (and backward) over the micro-batches of this rank; returns this rank's summed `statistics` (zeros off the last stage)."""

    def forward_step(data: Iterator[Inputs], stage: Any) -> tuple[Tensor, Any]:
        inputs = next(data)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            total, count, per_frame = objective.loss(output, inputs)
            return total, torch.tensor(count, dtype=torch.int, device=total.device), statistics(total, count, per_frame, inputs.timestep)

        return stage(inputs), loss

    stored = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(rows),
        model=[model],
        num_microbatches=len(rows),
        seq_length=max(row.length for row in rows),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return sum(stored[1:], stored[0]) if stored else empty_statistics(rows[0].positions.device)


def train_step(model: Any, optimizer: Any, objective: Objective, rows: list[Inputs]) -> tuple[Tensor, float, bool]:
    """One optimizer step over this rank's micro-batches -> (this rank's `statistics`, gradient norm, whether the step was taken)."""
    model.zero_grad_buffer()
    optimizer.zero_grad()
    totals = run_schedule(model, objective, rows, forward_only=False)
    taken, norm, _ = optimizer.step()
    return totals, float(norm or 0.0), bool(taken)


def reduce_statistics(values: Tensor) -> Tensor:
    """Sum over data parallel ranks, the same on every rank of every pipeline stage."""
    values = values.clone()
    torch.distributed.all_reduce(values, group=parallel_state.get_data_parallel_group())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(values, parallel_state.get_pipeline_model_parallel_last_rank(), group=parallel_state.get_pipeline_model_parallel_group())
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank; all ranks get the same answer."""
    value = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())
