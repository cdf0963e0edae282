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
from ...model.cache import DTYPES, CachedRow, KeyValueCache, Region, portions, regions_of
from ...model.forward import forward_row
from ...model.patches import grid_of, patchify, unpatchify
from ...model.prefix import no_prefix
from ...sequence.intervals import shift
from ...sequence.layout import Clip, ClipShape, Layout, history_shape, layout
from ...sequence.row import Mask, Row
from .rows import Sequence, assemble

Function = Callable[[list[Tensor], list[Tensor], float, "list[Tensor | None]"], list[Tensor]]
"""`function(histories, clips, t, conditions)`: see `predict_function`."""

PASS_TOKENS = 1 << 12
"""Most tokens of history that one pass encodes: activations stay bounded, whatever the window, and matrix products are
large enough to be efficient.
"""


def predict_function(chunks: list[Any], config: Config, device: torch.device) -> Function:
    """`function(histories, clips, t, conditions)`: each history ``[H, C, h, w]`` (H may be 0) and noisy clip ``[G, C,
    h, w]`` at timestep t, with its condition (`Denoiser.begin`) -> predicted clean clips.

    Several videos share one packed row; sizes and lengths may differ.
    """
    patch, side, multiple = config.model.patch_size, config.model.position_table_size, config.parallel.row_multiple
    nothing = no_prefix(config)

    def denoise(
        histories: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]
    ) -> list[Tensor]:
        """See `predict_function`."""
        sequences = [
            Sequence(
                layout=layout(history_shape(len(history), len(clip), grid_of(clip, patch), tokens_of(condition))),
                noisy=clip.cpu().float(),
                clean=history.cpu().float(),
                timestep=torch.full((clip.shape[0],), t),
                prefix=_on_host(condition),
            )
            for history, clip, condition in zip(histories, clips, conditions, strict=True)
        ]
        row = _placed(assemble(sequences, patch, side, multiple, nothing), config)
        output = forward_row(chunks, row.to(device), row.streams["noisy"]["patch"].shape[1])
        return _clips_of(output.cpu(), clips, patch)

    return denoise


def tokens_of(condition: Tensor | None) -> int:
    """Tokens that a condition takes before a video."""
    return 0 if condition is None else len(condition)


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
    """A denoiser that encodes prefix and history once: a step computes the tokens of the noisy clips only, against the
    keys and values of the others.

    A prefix sees nothing but itself, so that its keys and values stay as they are when the window moves.  With guidance
    the clips stand in the row twice, the second time with nothing before them.  most_tokens: of history in one pass.
    """

    def __init__(self, chunks: list[Any], config: Config, device: torch.device, most_tokens: int = PASS_TOKENS) -> None:
        self.chunks, self.config, self.device, self.most_tokens = chunks, config, device, most_tokens
        dtype = DTYPES.get(config.sample.cache_dtype)
        # A dtype that the keys have anyway needs no conversion.
        self.cache = KeyValueCache(
            None if dtype is chunks[0].config.params_dtype else dtype, config.sample.cache_offload
        )
        self.nothing, self.scratch = no_prefix(config), 0
        self.begin([])

    def begin(self, conditions: list[Tensor | None]) -> None:
        """See `Denoiser.begin`."""
        self.conditions = list(conditions)
        self.regions: list[Region] = []
        self.rows: dict[tuple[Any, ...], _NoisyRow] = {}

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        patch = self.config.model.patch_size
        grids = [grid_of(history, patch) for history in histories]
        blocks = [rows * columns + 2 for rows, columns in grids]
        prefixes = [tokens_of(condition) for condition in self.conditions]
        old, regions = self.regions, regions_of([len(history) for history in histories], blocks, prefixes)
        moves = [
            (before.start, after.start, before.position(frames)) for before, after, frames in zip(old, regions, kept)
        ]
        self.cache.arrange(regions[-1].end, self.scratch, [move for move in moves if move[-1]])
        self.regions, self.rows = regions, {}
        if not old:
            self._encode_prefixes([history[:0] for history in histories])
        spans = [(first, len(history)) for first, history in zip(kept, histories)]
        for portion in portions(spans, blocks, self.most_tokens):
            self._encode(
                [self._part(regions[video], first, histories[video][first:end]) for video, first, end in portion]
            )

    def _encode_prefixes(self, nothing: list[Tensor]) -> None:
        """All prefixes in one pass.  nothing: per video no frame of its size."""
        parts, patch = [], self.config.model.patch_size
        for region, condition, none in zip(self.regions, self.conditions, nothing):
            if condition is not None:
                alone = layout(ClipShape((), grid_of(none, patch), region.prefix))
                parts.append((region, region.start, _sequence(alone, 0, none, none, condition)))
        if parts:
            self._encode(parts)

    def _part(self, region: Region, first: int, frames: Tensor) -> tuple[Region, int, Sequence]:
        """Clean frames ``[n, C, h, w]`` of a video for `_encode`; first: number of the first one."""
        clean = layout(ClipShape((Clip(len(frames), has_noisy=False),), grid_of(frames, self.config.model.patch_size)))
        return region, region.row(first), _sequence(clean, region.position(first), frames[:0], frames)

    def _encode(self, parts: list[tuple[Region, int, Sequence]]) -> None:
        """One pass of tokens that are kept.  parts: a video's region, the row of the first token, and the tokens."""
        first_of, sequences = [start for _, start, _ in parts], [sequence for _, _, sequence in parts]
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
            # Stored in order, a token sees all of its video from the first to some token of its own frame, or prefix.
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
        """All clips given what comes before them, then, where `guided`, all of them given nothing."""
        patch, kept, sequences = self.config.model.patch_size, self.regions[-1].end, []
        for clip, region in [*zip(clips, self.regions), *((clip, None) for clip in clips if guided)]:
            noisy = layout(history_shape(0, len(clip), grid_of(clip, patch)))
            sequences.append(_sequence(noisy, region.position(region.frames) if region else 0, clip, clip[:0]))
        whole = self._assemble(sequences)
        intervals, row = shift(whole.intervals, kept), 0
        for region, item in zip(self.regions, sequences):
            count = len(item.layout)
            if region.end > region.start:
                # A noisy token's first interval is what comes before it, empty in the layout of a clip alone.
                intervals[row : row + count, 0], intervals[row : row + count, 1] = region.start, region.end
            row += count
        self._reserve(whole.length)
        places = torch.arange(kept, kept + whole.length, device=self.device)
        cached = CachedRow(self.cache, places, kept, kept + whole.length, 0)
        return _NoisyRow(_masked(whole, intervals).to(self.device), cached)

    def _assemble(self, sequences: list[Sequence]) -> Row:
        model = self.config.model
        multiple = self.config.parallel.row_multiple
        row = assemble(sequences, model.patch_size, model.position_table_size, multiple, self.nothing)
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


def _on_host(condition: Tensor | None) -> Tensor | None:
    return None if condition is None else condition.cpu()


def _sequence(alone: Layout, position: int, noisy: Tensor, clean: Tensor, condition: Tensor | None = None) -> Sequence:
    """Latents on the host at a layout whose positions start at `position`; timesteps are filled in later."""
    placed = replace(alone, position=alone.position + position)
    return Sequence(
        placed, noisy.cpu().float(), clean.cpu().float(), torch.zeros(len(noisy)), prefix=_on_host(condition)
    )


def build_denoiser(chunks: list[Any], config: Config, device: torch.device) -> Denoiser:
    """The model as the sampler sees it, with its memory of the history as `config.sample` has it.

    Every rank of a model parallel group must use its denoiser in the same way.
    """
    if not config.sample.cache:
        return Recompute(predict_function(chunks, config, device))
    return CachedDenoiser(chunks, config, device)
