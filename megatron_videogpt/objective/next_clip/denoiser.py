"""A model as what the sampler calls: histories and noisy clips in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ...config.schema import Config
from ...hub.common.sampling_videogpt import Denoiser, Recompute
from ...model.cache import KeyValueCache, Region, Row, portions, regions_of
from ...model.patches import grid_of, patchify, unpatchify
from ...sequence.intervals import shift
from ...sequence.layout import Clip, ClipShape, Layout, history_shape, layout
from ...sequence.row import Inputs
from .rows import Sequence, assemble

Function = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
"""`function(histories, clips, t)`: see `predict_function`."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `sample.cache_dtype`."""

PASS_TOKENS = 1 << 12
"""Most tokens of history that one pass encodes: activations stay bounded, whatever the window, and matrix products are
large enough to be efficient.
"""


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


def forward_row(chunks: list[Any], inputs: Inputs, cached: Row | None = None) -> Tensor:
    """Model output ``[noisy patches, p*p*C]`` of one whole packed row on every rank, through all context shards and
    pipeline stages, without gradients.

    chunks: the model chunks of this rank, one but for interleaved pipelines.  cached: where keys and values of the row
    are kept.
    """
    shard = inputs.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    with torch.no_grad(), _evaluating(chunks):
        output = (
            chunks[0](shard, cached)
            if parallel_state.get_pipeline_model_parallel_world_size() == 1
            else _through_stages(chunks, shard, cached)
        )
    return _join_shards(output, inputs)


def _through_stages(chunks: list[Any], inputs: Inputs, cached: Row | None) -> Tensor:
    stages, interleaved = parallel_state.get_pipeline_model_parallel_world_size(), len(chunks) > 1
    stored = get_forward_backward_func()(
        forward_step_func=lambda _, stage: (stage(inputs, cached), lambda output, non_loss_data=False: output),
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
    """`function(histories, clips, t)`: each history ``[H, C, h, w]`` (H may be 0) and noisy clip ``[G, C, h, w]`` at
    timestep t -> predicted clean clips.

    Several videos share one packed row; sizes and lengths may differ.
    """
    patch, side, multiple = config.model.patch_size, config.model.position_table_size, config.parallel.row_multiple

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
        return _clips_of(forward_row(chunks, assemble(sequences, patch, side, multiple).to(device)).cpu(), clips, patch)

    return denoise


def _clips_of(output: Tensor, clips: list[Tensor], patch: int) -> list[Tensor]:
    """Patches of all noisy clips of a row ``[patches, p*p*C]`` -> latents, each like its clip ``[G, C, h, w]``, on its
    device.
    """
    grids = [grid_of(clip, patch) for clip in clips]
    parts = output.split([len(clip) * rows * columns for clip, (rows, columns) in zip(clips, grids)])
    return [unpatchify(part, len(clip), grid, patch).to(clip.device) for part, clip, grid in zip(parts, clips, grids)]


class _NoisyRow(NamedTuple):
    """The row of one denoising step, but for its latents and timestep.  inputs: on the device; row: its place in the
    cache.
    """

    inputs: Inputs
    row: Row


class CachedDenoiser:
    """A denoiser that encodes the history once: a step computes the tokens of the noisy clips only, against the keys
    and values of the clean ones.

    With guidance the clips stand in the row twice, the second time without history.  most_tokens: of history in one
    pass.
    """

    def __init__(self, chunks: list[Any], config: Config, device: torch.device, most_tokens: int = PASS_TOKENS) -> None:
        self.chunks, self.config, self.device, self.most_tokens = chunks, config, device, most_tokens
        dtype = DTYPES.get(config.sample.cache_dtype)
        # A dtype that the keys have anyway needs no conversion.
        self.cache = KeyValueCache(
            None if dtype is chunks[0].config.params_dtype else dtype, config.sample.cache_offload
        )
        self.scratch = 0
        self.regions: list[Region] = []
        self.rows: dict[tuple[Any, ...], _NoisyRow] = {}

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        patch = self.config.model.patch_size
        grids = [grid_of(history, patch) for history in histories]
        blocks = [rows * columns + 2 for rows, columns in grids]
        regions = regions_of([len(history) for history in histories], blocks)
        moves = [
            (self.regions[n].start, regions[n].start, frames * blocks[n]) for n, frames in enumerate(kept) if frames
        ]
        self.cache.arrange(regions[-1].end, self.scratch, moves)
        self.regions, self.rows = regions, {}
        spans = [(first, len(history)) for first, history in zip(kept, histories)]
        for portion in portions(spans, blocks, self.most_tokens):
            self._encode([(self.regions[video], first, histories[video][first:end]) for video, first, end in portion])

    def _encode(self, parts: list[tuple[Region, int, Tensor]]) -> None:
        """One pass of clean tokens.  parts: a video's region, the number of the first frame, and the frames ``[n, C, h,
        w]``.
        """
        patch, first_of = (
            self.config.model.patch_size,
            [region.start + first * region.block for region, first, _ in parts],
        )
        sequences = []
        for region, first, frames in parts:
            clean = layout(ClipShape((Clip(len(frames), has_noisy=False),), grid_of(frames, patch)))
            sequences.append(_sequence(clean, first * region.block, frames[:0], frames))
        inputs = self._assemble(sequences)
        kept = self.regions[-1].end
        counts = [len(item.layout) for item in sequences]
        lasting = sum(counts)
        places = [torch.arange(start, start + count) for start, count in zip(first_of, counts)]
        padding = torch.arange(kept, kept + inputs.length - lasting)
        intervals = shift(inputs.intervals, kept - lasting)
        row = 0
        for (region, _, _), start, count in zip(parts, first_of, counts):
            here = intervals[row : row + count]
            # Stored in order, a clean token sees all of its video from the first to some token of its own frame.
            here[:, 0], here[:, 1] = region.start, inputs.intervals[row : row + count, 1] - row + start
            row += count
        self._reserve(len(padding))
        cached = Row(self.cache, torch.cat([*places, padding]).to(self.device), kept, kept + len(padding), lasting)
        forward_row(self.chunks, replace(inputs, intervals=intervals).to(self.device), cached)

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """See `Denoiser.predict`."""
        key = guided, *(tuple(clip.shape) for clip in clips)
        if key not in self.rows:
            self.rows[key] = self._noisy_row(clips, guided)
        inputs, cached = self.rows[key]
        copies, patch = 2 if guided else 1, self.config.model.patch_size
        noisy = torch.cat([patchify(clip.to(self.device, torch.float32), patch) for clip in clips] * copies)
        inputs = replace(inputs, noisy=noisy, timestep=torch.full_like(inputs.timestep, t))
        both = _clips_of(forward_row(self.chunks, inputs, cached), clips * copies, patch)
        return both[: len(clips)], both[len(clips) :] if guided else None

    def _noisy_row(self, clips: list[Tensor], guided: bool) -> _NoisyRow:
        """All clips given their histories, then, where `guided`, all of them given nothing."""
        patch, kept, sequences = self.config.model.patch_size, self.regions[-1].end, []
        for clip, region in [*zip(clips, self.regions), *((clip, None) for clip in clips if guided)]:
            noisy = layout(history_shape(0, len(clip), grid_of(clip, patch)))
            sequences.append(_sequence(noisy, region.frames * region.block if region else 0, clip, clip[:0]))
        inputs = self._assemble(sequences)
        intervals, row = shift(inputs.intervals, kept), 0
        for region, item in zip(self.regions, sequences):
            count = len(item.layout)
            if region.frames:
                # A noisy token's first interval is its history, empty in the layout of a clip alone.
                intervals[row : row + count, 0], intervals[row : row + count, 1] = region.start, region.end
            row += count
        self._reserve(inputs.length)
        places = torch.arange(kept, kept + inputs.length, device=self.device)
        return _NoisyRow(
            replace(inputs, intervals=intervals).to(self.device), Row(self.cache, places, kept, kept + inputs.length, 0)
        )

    def _assemble(self, sequences: list[Sequence]) -> Inputs:
        model = self.config.model
        return assemble(sequences, model.patch_size, model.position_table_size, self.config.parallel.row_multiple)

    def _reserve(self, scratch: int) -> None:
        """Room for so many rows that are not kept, beside all the history."""
        self.scratch = max(self.scratch, scratch)
        kept = self.regions[-1].end
        self.cache.arrange(kept, self.scratch, [(0, 0, kept)])


def _sequence(alone: Layout, position: int, noisy: Tensor, clean: Tensor) -> Sequence:
    """Latents on the host at a layout whose positions start at `position`; timesteps are filled in later."""
    placed = replace(alone, position=alone.position + position)
    return Sequence(placed, noisy.cpu().float(), clean.cpu().float(), torch.zeros(len(noisy)))


def build_denoiser(chunks: list[Any], config: Config, device: torch.device) -> Denoiser:
    """The model as the sampler sees it, with its memory of the history as `config.sample` has it.

    Every rank of a model parallel group must use its denoiser in the same way.
    """
    if not config.sample.cache:
        return Recompute(predict_function(chunks, config, device))
    return CachedDenoiser(chunks, config, device)
