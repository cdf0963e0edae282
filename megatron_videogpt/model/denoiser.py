"""A model as the function that the sampler calls: histories and noisy clips in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from ..config.schema import Config
from ..objective.base import Inputs
from ..objective.next_clip import Sequence, assemble, grid_of, unpatchify
from ..sequence.layout import history_shape, layout

Denoiser = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
"""See `sample.denoise.Denoiser`; repeated here because data flows from the model to the sampler."""


def forward_row(model: nn.Module, inputs: Inputs) -> Tensor:
    """Model output ``[noisy patches, p*p*C]`` of one packed row on every rank, through all pipeline stages, without gradients."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return model(inputs)
    stored = get_forward_backward_func()(
        forward_step_func=lambda _, stage: (stage(inputs), lambda output, non_loss_data=False: output),
        data_iterator=None,
        model=[model],
        num_microbatches=1,
        seq_length=inputs.length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    output = stored[0] if stored else inputs.noisy.new_empty(inputs.noisy.shape)
    torch.distributed.broadcast(output, last, group=parallel_state.get_pipeline_model_parallel_group())
    return output


def model_denoiser(model: nn.Module, config: Config, device: torch.device) -> Denoiser:
    """`denoise(histories, clips, t)`: each history ``[H, C, h, w]`` (H may be 0) and noisy clip ``[G, C, h, w]`` at timestep t -> predicted clean clips.

    Several videos share one packed row; sizes and lengths may differ.
    """
    patch, side, multiple = config.model.patch_size, config.model.position_table_size, config.parallel.tensor

    @torch.no_grad()
    def denoise(histories: list[Tensor], clips: list[Tensor], t: float) -> list[Tensor]:
        """See `model_denoiser`."""
        sequences = [
            Sequence(
                layout=layout(history_shape(history.shape[0], clip.shape[0], grid_of(clip, patch))),
                noisy=clip.cpu().float(),
                clean=history.cpu().float(),
                timestep=torch.full((clip.shape[0],), t),
            )
            for history, clip in zip(histories, clips)
        ]
        training = model.training
        model.eval()
        output = forward_row(model, assemble(sequences, patch, side, multiple).to(device)).cpu()
        model.train(training)
        parts = output.split([clip.shape[0] * grid_of(clip, patch)[0] * grid_of(clip, patch)[1] for clip in clips])
        return [unpatchify(part, clip.shape[0], grid_of(clip, patch), patch).to(clip.device) for part, clip in zip(parts, clips)]

    return denoise
