"""Keys and values of prefixes and clean history, kept from one pass of the model to the next.

Every layer has a buffer of keys and one of values.  Their rows are first the regions of the videos, one after another,
each for the tokens of a prefix and a history in storage order, and then scratch for what is computed and not kept:
noisy tokens and padding.  A pass says where each of its tokens belongs, so that storing twice does no harm, and its
intervals count in rows of the buffers: every attention backend takes fewer queries than keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `sample.cache_dtype`; auto is none of them."""


class KeyValueCache:
    """The buffers ``[rows, key-value heads of this rank, d]`` of this rank's layers; allocated when a layer first
    stores, zeros.

    dtype: of the buffers, None for that of the keys.  offload: buffers in host memory (pinned for CUDA), of which one
    layer at a time is on the device. With either, buffers have no scratch: a layer attends a copy that has, and what a
    pass computes is rounded for later passes only.
    """

    def __init__(self, dtype: torch.dtype | None = None, offload: bool = False) -> None:
        self.dtype, self.offload = dtype, offload
        self.copied = offload or dtype is not None
        self.rows = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Size of all buffers of this rank."""
        return sum(buffer.numel() * buffer.element_size() for pair in self.layers.values() for buffer in pair)

    def arrange(self, kept: int, scratch: int, moves: Sequence[tuple[int, int, int]]) -> None:
        """Make room for `kept` rows of history and `scratch` others; rows that stay valid are copied to where they
        belong now.

        moves: (first row until now, first row from now on, count), of everything that is still needed.
        """
        rows = max(self.rows, kept + (0 if self.copied else scratch))
        fits = rows == self.rows
        self.rows = rows
        if not fits and not moves:
            # Before new buffers are allocated, so that old and new ones never lie in memory together.
            self.layers.clear()
        if fits and all(old == new for old, new, _ in moves):
            return
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = self._moved(keys, moves), self._moved(values, moves)

    def _moved(self, old: Tensor, moves: Sequence[tuple[int, int, int]]) -> Tensor:
        buffer = torch.zeros(self.rows, *old.shape[1:], dtype=old.dtype, device=old.device, pin_memory=old.is_pinned())
        for start, target, count in moves:
            buffer[target : target + count] = old[start : start + count]
        return buffer

    def store(self, layer: int, keys: Tensor, values: Tensor, row: CachedRow) -> tuple[Tensor, Tensor]:
        """Keep what a layer computed for the tokens of a pass ``[L, heads, d]`` -> all keys and values that its
        intervals count in ``[rows, heads, d]``.
        """
        if layer not in self.layers:
            self.layers[layer] = self._buffer(keys), self._buffer(values)
        held = self.layers[layer]
        attended = self._placed(held[0], keys, row), self._placed(held[1], values, row)
        if row.later is not None and (self.copied or row.places is None):
            tokens, rows = row.later
            for buffer, new in zip(held, (keys, values)):
                buffer.index_copy_(0, rows.to(buffer.device), new.index_select(0, tokens).to(buffer))
        return attended

    def settle(self, row: CachedRow) -> None:
        """Behind a pass: what is in scratch, and is to stay, goes where it belongs (`CachedRow.later`)."""
        if row.later is None or row.places is None or self.copied:
            return
        tokens, rows = row.later
        scratch = row.places.index_select(0, tokens)
        for pair in self.layers.values():
            for buffer in pair:
                buffer.index_copy_(0, rows, buffer.index_select(0, scratch))

    def _buffer(self, like: Tensor) -> Tensor:
        device = torch.device("cpu") if self.offload else like.device
        pinned = self.offload and like.device.type != "cpu"
        # Zeros: rows beyond a history's end may meet a weight of 0, which NaN would survive.
        return torch.zeros(self.rows, *like.shape[1:], dtype=self.dtype or like.dtype, device=device, pin_memory=pinned)

    def _placed(self, buffer: Tensor, new: Tensor, row: CachedRow) -> Tensor:
        if row.places is None:
            return new
        if not self.copied:
            whole = buffer[: row.rows]
            return whole.index_copy_(0, row.places, new) if len(row.places) else whole
        whole = new.new_empty(row.rows, *new.shape[1:])
        whole[: row.kept].copy_(buffer[: row.kept], non_blocking=True)
        if len(row.places):
            whole.index_copy_(0, row.places, new)
        if row.lasting:
            buffer.index_copy_(0, row.places[: row.lasting].to(buffer.device), new[: row.lasting].to(buffer))
        return whole


class CachedRow(NamedTuple):
    """How a packed row of L tokens meets the buffers of a cache.  The row's masks count in these: intervals in their
    rows, or in the order of these that a mask gives.

    places: int64 ``[L]``, a row of the buffers for each token; ``[0]`` where they add nothing to what is attended, and
    None where they attend each other alone, under a mask that knows no cache.  kept: rows of the regions; rows: those
    and the scratch that this pass fills; lasting: leading tokens of the row that belong to the history, the others are
    scratch.  later: int64 (tokens, rows), what replaces rows that the pass itself still reads, once it is through
    (`KeyValueCache.settle`).
    """

    cache: KeyValueCache
    places: Tensor | None
    kept: int
    rows: int
    lasting: int
    later: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> CachedRow:
        """The same with its numbers on a device."""
        places = None if self.places is None else self.places.to(device)
        later = None if self.later is None else (self.later[0].to(device), self.later[1].to(device))
        return self._replace(places=places, later=later)


Cached = CachedRow | Mapping[int, CachedRow]
"""Of all attentions of a pass, or of each by the number of its mask: one that is not there keeps nothing."""


def cached_by(cached: Cached | None, mask: int) -> CachedRow | None:
    """How the attention that goes by a mask meets its buffers; None for not at all."""
    return cached.get(mask) if isinstance(cached, Mapping) else cached


class Region(NamedTuple):
    """Where one video's past lies in the buffers: its prefix, then its history.  start: first row; frames: how many;
    block: tokens of a frame; prefix: tokens of it; first: frames before the first that is there, by which positions
    count.
    """

    start: int
    frames: int
    block: int
    prefix: int = 0
    first: int = 0

    def row(self, frame: int) -> int:
        """Row of the first token of a frame, counted from the first that is there."""
        return self.start + self.prefix + frame * self.block

    def position(self, frame: int) -> int:
        """Position of the first token of a frame, counted in the same way."""
        return self.prefix + (self.first + frame) * self.block

    @property
    def end(self) -> int:
        """Row behind the last frame."""
        return self.row(self.frames)


def regions_of(
    frames: Sequence[int], blocks: Sequence[int], prefixes: Sequence[int], firsts: Sequence[int] | None = None
) -> list[Region]:
    """Regions without gaps for prefixes of so many tokens and histories of so many frames of so many tokens each.
    firsts: see `Region.first`; None for 0 throughout.
    """
    regions, start = [], 0
    lost = [0] * len(frames) if firsts is None else firsts
    for count, block, prefix, first in zip(frames, blocks, prefixes, lost, strict=True):
        regions.append(Region(start, count, block, prefix, first))
        start = regions[-1].end
    return regions


def portions(
    spans: Sequence[tuple[int, int]], blocks: Sequence[int], most_tokens: int
) -> list[list[tuple[int, int, int]]]:
    """Frames ``[first, end)`` per video -> passes of (video, first, end), in order, of at most `most_tokens` tokens or
    a single frame.
    """
    passes: list[list[tuple[int, int, int]]] = []
    room = 0
    for video, ((first, end), block) in enumerate(zip(spans, blocks)):
        while first < end:
            if room < block:
                passes.append([])
                room = max(most_tokens, block)
            count = min(end - first, room // block)
            passes[-1].append((video, first, first + count))
            first, room = first + count, room - count * block
    return passes
