"""A model as what the sampler calls: histories and noisy clips in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ..config.schema import Config
from ..hub.sampling_videogpt import Denoiser, Recompute
from ..objective.base import Inputs
from ..objective.next_clip import Sequence, assemble, grid_of, unpatchify
from ..sequence.layout import history_shape, layout

Function = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
"""`function(histories, clips, t)`: see `predict_function`."""


def forward_row(chunks: list[Any], inputs: Inputs) -> Tensor:
    """Model output ``[noisy patches, p*p*C]`` of one whole packed row on every rank, through all context shards and pipeline stages, without gradients.

    chunks: the model chunks of this rank, one but for interleaved pipelines.
    """
    shard = inputs.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    output = chunks[0](shard) if parallel_state.get_pipeline_model_parallel_world_size() == 1 else _through_stages(chunks, shard)
    return _join_shards(output, inputs)


def _through_stages(chunks: list[Any], inputs: Inputs) -> Tensor:
    stages, interleaved = parallel_state.get_pipeline_model_parallel_world_size(), len(chunks) > 1
    stored = get_forward_backward_func()(
        forward_step_func=lambda _, stage: (stage(inputs), lambda output, non_loss_data=False: output),
        data_iterator=[None] * len(chunks) if interleaved else None,
        model=chunks,
        # The interleaved schedule takes no fewer micro-batches than there are stages.
        num_microbatches=stages if interleaved else 1,
        seq_length=inputs.length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    output = stored[0].contiguous() if stored else inputs.noisy.new_empty(inputs.noisy.shape)
    torch.distributed.broadcast(output, last, group=parallel_state.get_pipeline_model_parallel_group())
    return output


def _join_shards(output: Tensor, inputs: Inputs) -> Tensor:
    """Outputs of all context parallel ranks in the order of the whole row's noisy patches."""
    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    if size == 1:
        return output
    whole = output.new_zeros(inputs.noisy.shape)
    whole[inputs.noisy_rows // (inputs.length // size) == rank] = output
    torch.distributed.all_reduce(whole, group=parallel_state.get_context_parallel_group())
    return whole


def predict_function(chunks: list[Any], config: Config, device: torch.device) -> Function:
    """`function(histories, clips, t)`: each history ``[H, C, h, w]`` (H may be 0) and noisy clip ``[G, C, h, w]`` at timestep t -> predicted clean clips.

    Several videos share one packed row; sizes and lengths may differ.
    """
    patch, side, multiple = config.model.patch_size, config.model.position_table_size, config.parallel.row_multiple

    @torch.no_grad()
    def denoise(histories: list[Tensor], clips: list[Tensor], t: float) -> list[Tensor]:
        """See `predict_function`."""
        sequences = [
            Sequence(
                layout=layout(history_shape(history.shape[0], clip.shape[0], grid_of(clip, patch))),
                noisy=clip.cpu().float(),
                clean=history.cpu().float(),
                timestep=torch.full((clip.shape[0],), t),
            )
            for history, clip in zip(histories, clips)
        ]
        training = [chunk.training for chunk in chunks]
        for chunk in chunks:
            chunk.eval()
        output = forward_row(chunks, assemble(sequences, patch, side, multiple).to(device)).cpu()
        for chunk, mode in zip(chunks, training):
            chunk.train(mode)
        parts = output.split([clip.shape[0] * grid_of(clip, patch)[0] * grid_of(clip, patch)[1] for clip in clips])
        return [unpatchify(part, clip.shape[0], grid_of(clip, patch), patch).to(clip.device) for part, clip in zip(parts, clips)]

    return denoise


def build_denoiser(chunks: list[Any], config: Config, device: torch.device) -> Denoiser:
    """The model as the sampler sees it, with its memory of the history as `config.sample` has it.

    Every rank of a model parallel group must use its denoiser in the same way.
    """
    return Recompute(predict_function(chunks, config, device))
