"""Forward and backward pass of a network in any layout, by megatron-core's own schedule and wrapper, for workers that
compare gradients with a dense twin's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def one_pass(bare: list[Any], rows: list[Any], loss_of: Callable[[Tensor, Any], Tensor]) -> None:
    """Leaves gradients in `main_grad` of the chunks' parameters, divided by the count of the rows' units on all ranks.

    rows: this rank's shards; loss_of: `loss_of(output, row)`, summed over the row's units.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_videogpt.platforms import compat

    chunks = [DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk) for chunk in bare]
    for chunk in bare:
        # Layers of a chunk, and those that recompute, are told by their own numbers.
        chunk.config.finalize_model_grads_func = compat.finalize_gradients

    def forward_step(data: Iterator[Any], stage: Any) -> tuple[Tensor, Any]:
        row = next(data)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            total = loss_of(output, row)
            return total, torch.full((), row.count, dtype=torch.int), total.detach()

        return stage(row), loss

    compat.expect_lengths(chunks, {row.length for row in rows})
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(rows) for _ in chunks] if len(chunks) > 1 else iter(rows),
        model=chunks,
        num_microbatches=len(rows),
        seq_length=max(row.length for row in rows),
        micro_batch_size=1,
        forward_only=False,
    )


def worst_of_all(mine: dict[str, float]) -> dict[str, float]:
    """The largest of every rank's numbers, by name; a collective."""
    everyone: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    return {key: max(one.get(key, 0.0) for one in everyone) for one in everyone for key in one}
