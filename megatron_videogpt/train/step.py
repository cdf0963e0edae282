"""One optimizer step, to be read from top to bottom: forward, loss and backward of every micro-batch, the gradient's
norm, the decision, the update.

All of it is queued on the device; the host waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config
from torch import Tensor

from ..errors import UserError
from ..objective.base import ONLY, Objective, Score, Turn
from ..platforms import compat
from ..sequence.row import Row
from .statistics import Statistics, empty_statistics, statistics


class Step(NamedTuple):
    """What became of an optimizer step, on the device, which may still be at work on it.

    totals: this rank's `statistics`, zeros of a step that was not taken; norm: of the gradient, float32 ``[]``; taken:
    bool ``[]``; scored: bool ``[]``, whether any sample on any rank could be read.  But for the totals, the same on
    every rank.
    """

    totals: Statistics
    norm: Tensor
    taken: Tensor
    scored: Tensor


def train_step(
    chunks: list[Any],
    optimizer: Any,
    objective: Objective,
    rows: list[Row],
    clip: float = 1.0,
    limit: Callable[[], float] = lambda: math.inf,
    turn: Turn = ONLY,
) -> Step:
    """Queue one optimizer step of one network over this rank's micro-batches on the device.

    rows: this context parallel rank's shards.  clip: largest gradient norm, scaled down to ``clip * norm / (norm +
    1e-6)`` as megatron-core does; 0 for none.  limit: the largest norm of a step that is taken; asked for when forward
    and backward pass are queued, so that the device has work while the host waits for the numbers of the step before.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    totals = run_schedule(chunks, objective, rows, forward_only=False, turn=turn)
    norm, taken, scored = update(optimizer, clip, limit(), totals.counts[0])
    return Step(totals.masked(taken), norm, taken, scored)


def run_schedule(
    chunks: list[Any], objective: Objective, rows: list[Row], forward_only: bool, turn: Turn = ONLY
) -> Statistics:
    """Forward (and backward) over the micro-batches of this rank; returns this rank's summed `statistics` (zeros off
    the last stage).  See `run_rows`.
    """
    each = run_rows(chunks, objective, rows, forward_only, turn)
    return sum(each[1:], each[0]) if each else empty_statistics(objective, rows[0].positions.device, turn.label)


def run_rows(
    chunks: list[Any], objective: Objective, rows: list[Row], forward_only: bool, turn: Turn = ONLY
) -> list[Statistics]:
    """The same; returns the `statistics` of each micro-batch, in order, none off the last stage.

    chunks: the model chunks of this rank, one but for interleaved pipelines.  Those work through their micro-batches in
    groups of one per pipeline rank; a forward pass fills the last group with copies that are not counted.
    """
    real = len(rows)
    if len(chunks) > 1:
        missing = -real % parallel_state.get_pipeline_model_parallel_world_size()
        assert forward_only or not missing
        rows = rows + rows[:1] * missing

    def forward_step(data: Iterator[Row], stage: Any) -> tuple[Tensor, Any]:
        row = objective.given(next(data), turn)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Statistics]:
            score = objective.score(output, row, turn)
            check_fusion(chunks, score)
            total = score.total if forward_only else balanced(score)
            count = torch.full((), score.count, dtype=torch.int, device=score.total.device)
            return total, count, statistics(objective, score, turn.label)

        return stage(row), loss

    compat.expect_lengths(chunks, {row.length for row in rows})
    iterators = [iter(rows) for _ in chunks]
    stored: list[Statistics] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks,
        num_microbatches=len(rows),
        seq_length=max(row.length for row in rows),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return stored[:real]


def check_fusion(chunks: list[Any], score: Score) -> None:
    """Losses that are weighed by their gradients are differentiated once more, which would add weight gradients to the
    buffer twice.
    """
    if score.balanced and any(get_model_config(chunk).gradient_accumulation_fusion for chunk in chunks):
        raise UserError(
            "parallel.gradient_accumulation_fusion = on: this objective weighs losses by their gradients, which would "
            "be added up twice; use parallel.gradient_accumulation_fusion=off"
        )


def balanced(score: Score) -> Tensor:
    """The loss whose gradient is taken: `Score.total` and what is balanced against it, by the gradients of this row
    (of all its context parallel shards together).
    """
    total = score.total
    for item in score.balanced:
        gradients = [torch.autograd.grad(part, item.by, retain_graph=True)[0] for part in (score.total, item.total)]
        sums = torch.stack(gradients)
        if parallel_state.get_context_parallel_world_size() > 1:
            torch.distributed.all_reduce(sums, group=parallel_state.get_context_parallel_group())
        own, other = sums.float().flatten(1).norm(dim=1)
        total = total + item.factor * (own / (other + item.eps)).clamp(max=item.limit) * item.total
    return total


@torch.no_grad()
def update(optimizer: Any, clip: float, limit: float, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, decision and update from the reduced gradients: megatron-core's own `step` in its parts -> (norm, taken,
    scored), as in `Step`.

    The device decides: a norm that is not finite or above `limit`, or a step in which no rank scored anything, leaves
    weights and optimizer as they are: without a gradient, momentum and weight decay would still move the weights.
    count: int64 ``[]``, units scored on this rank.
    """
    optimizer.prepare_grads()
    norm, scored = gradient_norm(optimizer, count)
    taken = norm.isfinite() & (norm <= limit) & scored
    scale = ((norm + 1e-6) / clip).clamp(min=1.0) if clip else torch.ones_like(norm)
    compat.take_step(optimizer, taken, scale)
    return norm, taken, scored


@torch.no_grad()
def gradient_norm(optimizer: Any, count: Tensor) -> tuple[Tensor, Tensor]:
    """-> (2-norm of the gradient over the whole model: float32 ``[]``, whether any rank's count is not 0: bool
    ``[]``), the same on every rank.

    `prepare_grads` comes before.  count: int64 ``[]``, units scored on this rank; it travels with the norm.
    megatron-core's own norm is a number, for which the host waits; the sum of squares is float32, as there.
    """
    parts = optimizer.chained_optimizers
    grads = [grad for part in parts for grad in compat.gradients(part)]
    squares = (
        torch.stack(torch._foreach_norm(grads)).norm().square()
        if grads
        else torch.zeros((), device=parts[0].get_loss_scale().device)
    )
    sums = torch.stack([squares, (count > 0).to(squares)])
    torch.distributed.all_reduce(sums, group=optimizer.get_grad_stats_parallel_group())
    return sums[0].sqrt(), sums[1] > 0
