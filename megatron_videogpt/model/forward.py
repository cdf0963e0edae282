"""One whole packed row through the model, in every parallel layout, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ..sequence.row import Row
from .cache import Cached


@contextmanager
def _evaluating(chunks: list[Any]) -> Iterator[None]:
    """Chunks in evaluation mode, and afterwards as they were."""
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, mode in zip(chunks, training):
            chunk.train(mode)


def forward_row(chunks: list[Any], row: Row, width: int, cached: Cached | None = None) -> Tensor:
    """Model output float32 ``[scored tokens, width]`` of one whole packed row on every rank, through all context shards
    and pipeline stages, without gradients.

    chunks: the model chunks of this rank, one but for interleaved pipelines; width: of an output.  cached: where keys
    and values of the row are kept.
    """
    shard = row.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    with torch.no_grad(), _evaluating(chunks):
        output = (
            chunks[0](shard, cached)
            if parallel_state.get_pipeline_model_parallel_world_size() == 1
            else _through_stages(chunks, shard, width, cached)
        )
    return _join_shards(output, row)


def _through_stages(chunks: list[Any], row: Row, width: int, cached: Cached | None) -> Tensor:
    stages, interleaved = parallel_state.get_pipeline_model_parallel_world_size(), len(chunks) > 1
    stored = get_forward_backward_func()(
        forward_step_func=lambda _, stage: (stage(row, cached), lambda output, non_loss_data=False: output),
        data_iterator=[None] * len(chunks) if interleaved else None,
        model=chunks,
        # The interleaved schedule takes no fewer micro-batches than there are stages.
        num_microbatches=stages if interleaved else 1,
        seq_length=row.length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    places = row.scored_rows
    output = stored[0].contiguous() if stored else torch.empty(len(places), width, device=places.device)
    torch.distributed.broadcast(output, last, group=parallel_state.get_pipeline_model_parallel_group())
    return output


def _join_shards(output: Tensor, row: Row) -> Tensor:
    """Outputs of all context parallel ranks in the order of the whole row's scored tokens."""
    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    if size == 1:
        return output
    whole = output.new_zeros(len(row.scored_rows), output.shape[1])
    whole[row.scored_rows // (row.length // size) == rank] = output
    torch.distributed.all_reduce(whole, group=parallel_state.get_context_parallel_group())
    return whole
