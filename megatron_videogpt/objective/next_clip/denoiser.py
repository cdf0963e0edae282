"""A model as what the sampler calls: histories and noisy clips in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config.derived import require_positions
from ...config.schema import Config
from ...hub.common.sampling_videogpt import Denoiser, Recompute
from ...model.cache import CachedRow, KeyValueCache, Region, portions, regions_of
from ...model.forward import forward_row
from ...model.patches import grid_of, patchify, unpatchify
from ...sequence.intervals import shift
from ...sequence.layout import Clip, ClipShape, Layout, history_shape, layout
from ...sequence.row import Mask, Row
from .rows import Sequence, assemble

Function = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
"""`function(histories, clips, t)`: see `predict_function`."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `sample.cache_dtype`."""

PASS_TOKENS = 1 << 12
"""Most tokens of history that one pass encodes: activations stay bounded, whatever the window, and matrix products are
large enough to be efficient.
"""


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
        row = _placed(assemble(sequences, patch, side, multiple), config)
        output = forward_row(chunks, row.to(device), row.streams["noisy"]["patch"].shape[1])
        return _clips_of(output.cpu(), clips, patch)

    return denoise


def _clips_of(output: Tensor, clips: list[Tensor], patch: int) -> list[Tensor]:
    """Patches of all noisy clips of a row ``[patches, p*p*C]`` -> latents, each like its clip ``[G, C, h, w]``, on its
    device.
    """
    grids = [grid_of(clip, patch) for clip in clips]
    parts = output.split([len(clip) * rows * columns for clip, (rows, columns) in zip(clips, grids)])
    return [unpatchify(part, len(clip), grid, patch).to(clip.device) for part, clip, grid in zip(parts, clips, grids)]


class _NoisyRow(NamedTuple):
    """The row of one denoising step, but for its latents and timestep.  row: on the device; cached: its place in the
    cache.
    """

    row: Row
    cached: CachedRow


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
        whole = self._assemble(sequences)
        kept = self.regions[-1].end
        counts = [len(item.layout) for item in sequences]
        lasting = sum(counts)
        places = [torch.arange(start, start + count) for start, count in zip(first_of, counts)]
        padding = torch.arange(kept, kept + whole.length - lasting)
        intervals = shift(whole.intervals, kept - lasting)
        row = 0
        for (region, _, _), start, count in zip(parts, first_of, counts):
            here = intervals[row : row + count]
            # Stored in order, a clean token sees all of its video from the first to some token of its own frame.
            here[:, 0], here[:, 1] = region.start, whole.intervals[row : row + count, 1] - row + start
            row += count
        self._reserve(len(padding))
        everywhere = torch.cat([*places, padding]).to(self.device)
        cached = CachedRow(self.cache, everywhere, kept, kept + len(padding), lasting)
        width = whole.streams["noisy"]["patch"].shape[1]
        forward_row(self.chunks, _masked(whole, intervals).to(self.device), width, cached)

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """See `Denoiser.predict`."""
        key = guided, *(tuple(clip.shape) for clip in clips)
        if key not in self.rows:
            self.rows[key] = self._noisy_row(clips, guided)
        row, cached = self.rows[key]
        copies, patch = 2 if guided else 1, self.config.model.patch_size
        noisy = torch.cat([patchify(clip.to(self.device, torch.float32), patch) for clip in clips] * copies)
        row = _denoising(row, noisy, t)
        both = _clips_of(forward_row(self.chunks, row, noisy.shape[1], cached), clips * copies, patch)
        return both[: len(clips)], both[len(clips) :] if guided else None

    def _noisy_row(self, clips: list[Tensor], guided: bool) -> _NoisyRow:
        """All clips given their histories, then, where `guided`, all of them given nothing."""
        patch, kept, sequences = self.config.model.patch_size, self.regions[-1].end, []
        for clip, region in [*zip(clips, self.regions), *((clip, None) for clip in clips if guided)]:
            noisy = layout(history_shape(0, len(clip), grid_of(clip, patch)))
            sequences.append(_sequence(noisy, region.frames * region.block if region else 0, clip, clip[:0]))
        whole = self._assemble(sequences)
        intervals, row = shift(whole.intervals, kept), 0
        for region, item in zip(self.regions, sequences):
            count = len(item.layout)
            if region.frames:
                # A noisy token's first interval is its history, empty in the layout of a clip alone.
                intervals[row : row + count, 0], intervals[row : row + count, 1] = region.start, region.end
            row += count
        self._reserve(whole.length)
        places = torch.arange(kept, kept + whole.length, device=self.device)
        cached = CachedRow(self.cache, places, kept, kept + whole.length, 0)
        return _NoisyRow(_masked(whole, intervals).to(self.device), cached)

    def _assemble(self, sequences: list[Sequence]) -> Row:
        model = self.config.model
        row = assemble(sequences, model.patch_size, model.position_table_size, self.config.parallel.row_multiple)
        return _placed(row, self.config)

    def _reserve(self, scratch: int) -> None:
        """Room for so many rows that are not kept, beside all the history."""
        self.scratch = max(self.scratch, scratch)
        kept = self.regions[-1].end
        self.cache.arrange(kept, self.scratch, [(0, 0, kept)])


def _placed(row: Row, config: Config) -> Row:
    """The row, on the host; UserError where the model has not learned all of its positions."""
    require_positions(config, int(row.positions.max()) + 1, "the history and the clip")
    return row


def _masked(row: Row, intervals: Tensor) -> Row:
    """The row with other intervals."""
    return replace(row, masks=(Mask(intervals),))


def _denoising(row: Row, noisy: Tensor, t: float) -> Row:
    """The row with these noisy patches, at timestep t."""
    stream = row.streams["noisy"]
    streams = row.streams | {"noisy": replace(stream, values=stream.values | {"patch": noisy})}
    return replace(row, streams=streams, units={"timestep": torch.full_like(row.units["timestep"], t)})


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
