"""What is kept of finished frames between passes of the factorised network, and how a pass meets it (reference README,
section 8): a ring of keys and values for attention in time, and those of a few frames for attention to the prompt.

The ring of a place has a row for each frame of the window.  Frame f, counted from the first that was written, is in row
``f % window`` of it, where it overwrites frame ``f - window``: nothing is ever shifted.  The frames of a pass stand in
the free rows behind, as long as these last, and later in scratch, so that those that are written still see the oldest
ones, which they replace when the pass is through.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....model.cache import CachedRow, KeyValueCache
from ....model.factorised import PROMPT, SPATIAL, TEMPORAL
from ....sequence.intervals import padding_intervals
from ....sequence.row import CachedGroups, Mask, Row
from .variant import Variant, seen_from_cache, written_frames


class Kept:
    """Of `videos` videos of `patches` patches a frame, at most `window` frames each; other arguments: of
    `KeyValueCache`.
    """

    def __init__(
        self,
        variant: Variant,
        videos: int,
        patches: int,
        window: int,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        self.variant, self.videos, self.patches, self.window = variant, videos, patches, window
        self.time, self.prompt = KeyValueCache(dtype, offload), KeyValueCache(dtype, offload)
        self.begin()

    def begin(self) -> None:
        """As if nothing had been written."""
        self.written, self.of_prompt = 0, list[int]()

    @property
    def held(self) -> int:
        """Frames in the ring."""
        return min(self.written, self.window)

    @property
    def bytes(self) -> int:
        """Size of all buffers of this rank."""
        return self.time.bytes + self.prompt.bytes

    def met(self, row: Row, frames: int, writing: bool) -> tuple[Row, dict[int, CachedRow]]:
        """A row of so many frames a video, on the host, with masks that count in the buffers, and how it meets these.

        writing: the frames are finished, and are kept; else noisy ones that follow what is kept.  Attention in space
        keeps nothing.  `wrote` comes behind a pass that writes.
        """
        mask, cached = self._in_time(frames, row.length, writing)
        masks, met = [row.masks[SPATIAL], mask], {TEMPORAL: cached}
        if self.variant.enhance != "none":
            mask, met[PROMPT] = self._write_prompt(row, frames) if writing else self._read_prompt(frames, row.length)
            masks.append(mask)
        return replace(row, masks=tuple(masks)), met

    def wrote(self, met: dict[int, CachedRow], frames: int) -> None:
        """The pass that writes so many frames is through."""
        self.time.settle(met[TEMPORAL])
        self.written += frames

    def ages(self) -> list[int]:
        """The row of each held frame in its ring, the oldest frame first."""
        return [frame % self.window for frame in range(self.written - self.held, self.written)]

    def _tokens(self, frames: int) -> Tensor:
        """int64 ``[places, frames]``: where in a row each place has its frames."""
        tokens = torch.arange(self.videos * frames * self.patches)
        return tokens.view(self.videos, frames, self.patches).transpose(1, 2).reshape(-1, frames)

    def _in_time(self, frames: int, length: int, writing: bool) -> tuple[Mask, CachedRow]:
        places, ring, held = self.videos * self.patches, self.window, self.held
        tokens, kept = self._tokens(frames), places * ring
        seen = torch.tensor(seen_from_cache(self.variant, frames, held, writing))
        place, number = torch.arange(places)[:, None], torch.arange(frames)
        free = held + frames <= ring
        first = place * ring
        if free:
            own, scratch = first + held, kept
            parts = [first.expand_as(tokens), first + seen, 0 * tokens, 0 * tokens]
            blocks = ((0, ring, held + frames), (0, 0, 0))
        else:
            own, scratch = kept + place * frames, kept + tokens.numel()
            parts = [first.expand_as(tokens), (first + held).expand_as(tokens), own.expand_as(tokens)]
            parts.append(own + seen - held)
            blocks = ((0, ring, held), (kept, frames, frames))
        padding = length - tokens.numel()
        # Tables of [places, frames] go to where the tokens stand.
        table, at = torch.empty(tokens.numel(), 4, dtype=torch.int32), torch.empty(tokens.numel(), dtype=torch.int64)
        table[tokens.flatten()] = torch.stack(parts, dim=-1).flatten(0, 1).int()
        at[tokens.flatten()] = (own + number).flatten()
        mask = Mask(
            torch.cat([table, padding_intervals(scratch, padding)]),
            groups=CachedGroups(places, frames, blocks),
            queries=torch.cat([tokens.flatten(), torch.arange(tokens.numel(), length)]),
        )
        later = None
        if writing and not free:
            # Of more frames than the ring has, the last ones.
            some = number[max(0, frames - ring) :]
            later = tokens[:, some].flatten(), (first + (self.written + some) % ring).flatten()
        everywhere = torch.cat([at, scratch + torch.arange(padding)])
        lasting = tokens.numel() if writing and free else 0
        self.time.arrange(kept, scratch + padding - kept, [(0, 0, kept)] if self.written else [])
        return mask, CachedRow(self.time, everywhere, kept, scratch + padding, lasting, later)

    @property
    def _slots(self) -> int:
        """Frames of a video that have room for attention to the prompt."""
        return self.variant.enhance_frames if self.variant.enhance == "prev_frames" else 1

    def _write_prompt(self, row: Row, frames: int) -> tuple[Mask, CachedRow]:
        """Each frame sees itself; the last ones are kept for others, each once."""
        kept, later = self.videos * self._slots * self.patches, None
        if self.variant.enhance == "prev_frames" or not self.written:
            chosen = written_frames(self.variant, frames)
            once = sorted(set(chosen))
            self.of_prompt = [once.index(frame) for frame in chosen]
            tokens = torch.arange(self.videos * frames * self.patches).view(self.videos, frames, self.patches)
            rows = torch.arange(kept).view(self.videos, self._slots, self.patches)
            later = tokens[:, once].flatten(), rows[:, : len(once)].flatten()
        self.prompt.arrange(kept, 0, [(0, 0, kept)] if self.written else [])
        return row.masks[SPATIAL], CachedRow(self.prompt, None, kept, kept, 0, later)

    def _read_prompt(self, frames: int, length: int) -> tuple[Mask, CachedRow]:
        """All tokens see the kept frames of their video, as often as each counts."""
        slots, patches, distinct = self._slots, self.patches, len(set(self.of_prompt))
        rows = torch.arange(self.videos * slots * patches).view(self.videos, slots, patches)
        order = None if distinct in (1, slots) else rows[:, self.of_prompt].flatten()
        seen = (distinct if order is None else slots) * patches
        first = torch.arange(self.videos, dtype=torch.int32)[:, None] * slots * patches
        table = torch.cat([first, first + seen, 0 * first, 0 * first], dim=1)
        real = table.repeat_interleave(frames * patches, dim=0)
        mask = Mask(torch.cat([real, padding_intervals(0, length - len(real))]), order)
        return mask, CachedRow(self.prompt, torch.zeros(0, dtype=torch.int64), rows.numel(), rows.numel(), 0)
