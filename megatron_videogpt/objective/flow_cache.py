"""A denoiser that keeps the keys and values of prefix and history from one step of the sampler to the next."""

from __future__ import annotations

from collections.abc import Sequence as Numbers
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.schema import Config
from ..model.cache import DTYPES, CachedRow, KeyValueCache, Region, portions, regions_of
from ..model.forward import forward_row
from ..model.patches import grid_of, patchify
from ..sequence.intervals import shift
from ..sequence.layout import ClipShape, layout
from ..sequence.row import Mask, Row
from .flow_denoiser import Form, clips_of, on_host, placed_row, tokens_of
from .flow_rows import Sequence

PASS_TOKENS = 1 << 12
"""Most tokens of history that one pass encodes: activations stay bounded, whatever the window, and matrix products are
large enough to be efficient.
"""


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

    def __init__(
        self, chunks: list[Any], config: Config, device: torch.device, form: Form, most_tokens: int = PASS_TOKENS
    ) -> None:
        self.chunks, self.config, self.device, self.form = chunks, config, device, form
        self.most_tokens = most_tokens
        dtype = DTYPES.get(config.sample.cache_dtype)
        # A dtype that the keys have anyway needs no conversion.
        self.cache = KeyValueCache(
            None if dtype is chunks[0].config.params_dtype else dtype, config.sample.cache_offload
        )
        self.scratch = 0
        self.begin([])

    def begin(self, conditions: list[Tensor | None]) -> None:
        """See `Denoiser.begin`."""
        self.conditions = list(conditions)
        self.regions: list[Region] = []
        self.rows: dict[tuple[Any, ...], _NoisyRow] = {}

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`: positions count from the first frame of what is kept (see `forget`), else from that
        of the history.
        """
        patch = self.config.model.patch_size
        grids = [grid_of(history, patch) for history in histories]
        blocks = [rows * columns + 2 for rows, columns in grids]
        old = self.regions
        firsts = [region.first if frames else 0 for region, frames in zip(old, kept)] or [0] * len(histories)
        self._arrange([len(history) for history in histories], blocks, firsts, kept, [0] * len(kept))
        if not old:
            self._encode_prefixes([history[:0] for history in histories])
        spans = [(first, len(history)) for first, history in zip(kept, histories)]
        for portion in portions(spans, blocks, self.most_tokens):
            self._encode(
                [self._part(self.regions[video], first, histories[video][first:end]) for video, first, end in portion]
            )

    def forget(self, frames: list[int]) -> None:
        """So many of the oldest frames of each video leave.  Later ones keep what they have seen of them, and their
        positions.
        """
        left = [region.frames - gone for region, gone in zip(self.regions, frames)]
        firsts = [region.first + gone for region, gone in zip(self.regions, frames)]
        self._arrange(left, [region.block for region in self.regions], firsts, left, frames)

    def _arrange(
        self, frames: list[int], blocks: list[int], firsts: list[int], kept: Numbers[int], gone: Numbers[int]
    ) -> None:
        """Regions for so many frames of each video, the first of them number `firsts`; prefixes, and the `kept` frames
        of the regions until now that follow the `gone` ones, go there.
        """
        prefixes = [tokens_of(condition) for condition in self.conditions]
        old, self.regions = self.regions, regions_of(frames, blocks, prefixes, firsts)
        moves = []
        for before, after, count, lost in zip(old, self.regions, kept, gone):
            if lost:
                moves.append((before.start, after.start, before.prefix))
                moves.append((before.row(lost), after.row(0), count * before.block))
            else:
                moves.append((before.start, after.start, before.prefix + count * before.block))
        self.rows = {}
        self.cache.arrange(self.regions[-1].end, self.scratch, [move for move in moves if move[-1]])

    def _encode_prefixes(self, nothing: list[Tensor]) -> None:
        """All prefixes in one pass.  nothing: per video no frame of its size."""
        parts, patch = [], self.config.model.patch_size
        for region, condition, none in zip(self.regions, self.conditions, nothing):
            if condition is not None:
                alone, none = layout(ClipShape((), grid_of(none, patch), region.prefix)), none.cpu().float()
                prefix = Sequence(alone, none, none, torch.zeros(0), prefix=on_host(condition))
                parts.append((region, region.start, prefix))
        if parts:
            self._encode(parts)

    def _part(self, region: Region, first: int, frames: Tensor) -> tuple[Region, int, Sequence]:
        """Finished frames ``[n, C, h, w]`` of a video for `_encode`; first: number of the first one in the region."""
        return region, region.row(first), self.form.past(frames.cpu().float(), region.position(first))

    def _encode(self, parts: list[tuple[Region, int, Sequence]]) -> None:
        """One pass of tokens that are kept.  parts: a video's region, the row of the first token, and the tokens."""
        first_of, sequences = [start for _, start, _ in parts], [sequence for _, _, sequence in parts]
        whole = placed_row(self.form, sequences, self.config)
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
        """See `Denoiser.predict`; clips of the first videos alone will do."""
        key = guided, *(tuple(clip.shape) for clip in clips)
        if key not in self.rows:
            self.rows[key] = self._noisy_row(clips, guided)
        row, cached = self.rows[key]
        copies, patch = 2 if guided else 1, self.config.model.patch_size
        noisy = torch.cat([patchify(clip.to(self.device, torch.float32), patch) for clip in clips] * copies)
        row = _denoising(row, noisy, t)
        both = clips_of(forward_row(self.chunks, row, noisy.shape[1], cached), clips * copies, patch)
        return both[: len(clips)], both[len(clips) :] if guided else None

    def _noisy_row(self, clips: list[Tensor], guided: bool) -> _NoisyRow:
        """All clips given what comes before them, then, where `guided`, all of them given nothing."""
        kept, sequences = self.regions[-1].end, []
        for clip, region in [*zip(clips, self.regions), *((clip, None) for clip in clips if guided)]:
            position = region.position(region.frames) if region else 0
            sequences.append(self.form.clip(clip.cpu().float(), position))
        whole = placed_row(self.form, sequences, self.config)
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

    def _reserve(self, scratch: int) -> None:
        """Room for so many rows that are not kept, beside all the history."""
        self.scratch = max(self.scratch, scratch)
        kept = self.regions[-1].end
        self.cache.arrange(kept, self.scratch, [(0, 0, kept)])


def _masked(row: Row, intervals: Tensor) -> Row:
    """The row with other intervals."""
    return replace(row, masks=(Mask(intervals),))


def _denoising(row: Row, noisy: Tensor, t: float) -> Row:
    """The row with these noisy patches, at timestep t."""
    stream = row.streams["noisy"]
    streams = row.streams | {"noisy": replace(stream, values=stream.values | {"patch": noisy})}
    return replace(row, streams=streams, units={"timestep": torch.full_like(row.units["timestep"], t)})
