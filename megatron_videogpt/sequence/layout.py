"""Storage order, roles, positions and mask of a video sequence.

Tokens are stored as ``[prefix][clean frames in time order][noisy clip 1][noisy clip 2]...`` and, inside a noisy clip,
all ``<|diffusion|>`` tokens, all time tokens, all patches.  Attention does not care about storage order as
long as each token carries its position, and in this order the hierarchical mask of next clip diffusion is two key
intervals per query and two query intervals per key (docs/attention.md; rules in tests/golden/README.md, sections 2-4
and 6).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .intervals import padding_intervals, shift

PAD, CLEAN, NOISY, PREFIX = range(4)
"""Token kinds."""
DIFFUSION, TIME, NOISY_PATCH = range(3)
"""Roles of a noisy frame's tokens; a query sees the keys of its clip whose role is not above its own."""
IMG_START, CLEAN_PATCH, IMG_END = range(3)
"""Roles of a clean frame's tokens."""


@dataclass(frozen=True)
class Clip:
    """A run of frames that is denoised together; what is given has no noisy copy, the last clip of a sequence no clean
    one.
    """

    frames: int
    has_clean: bool = True
    has_noisy: bool = True


@dataclass(frozen=True)
class ClipShape:
    """Everything that decides a sequence's layout.

    clips: in time order.  grid: patch rows and columns of a frame.  prefix: tokens of a condition before the video (a
    class, a text), which see each other and nothing else, and are seen by every token of the video.
    """

    clips: tuple[Clip, ...]
    grid: tuple[int, int]
    prefix: int = 0

    def __post_init__(self) -> None:
        if any(clip.frames < 0 for clip in self.clips) or min(self.grid) < 1 or self.prefix < 0:
            raise ValueError(f"clip shape {self}: frames and prefix must be at least 0 and the grid at least 1x1")


@dataclass(frozen=True)
class Layout:
    """One row of tokens, possibly several sequences packed.  All tensors have one entry per token (L).

    kind, role, clip: int64; frame: int64, frame index inside its sequence (of a prefix, the token's); position: int64,
    for RoPE; intervals: int32 ``[L, 4]``, keys of each query; columns: int32 ``[L, 4]``, queries of each key;
    sequence: int64, which packed sequence (-1 for padding).
    """

    kind: Tensor
    role: Tensor
    frame: Tensor
    clip: Tensor
    position: Tensor
    intervals: Tensor
    columns: Tensor
    sequence: Tensor

    def __len__(self) -> int:
        return self.kind.shape[0]

    def rows(self, kind: int, role: int | None = None) -> Tensor:
        """Row numbers (int64) of the tokens of a kind, and of a role where given, in storage order."""
        wanted = self.kind == kind
        return (wanted if role is None else wanted & (self.role == role)).nonzero().flatten()


def training_shape(clips: tuple[int, ...], grid: tuple[int, int], prefix: int = 0, given: int = 0) -> ClipShape:
    """Frames per clip -> the shape of a training sequence: every clip noisy and clean, the last one only noisy; before
    them `given` frames that are clean only.
    """
    last, past = len(clips) - 1, (Clip(given, has_noisy=False),) if given else ()
    return ClipShape((*past, *(Clip(frames, has_clean=k < last) for k, frames in enumerate(clips))), grid, prefix)


def history_shape(history: int, frames: int, grid: tuple[int, int], prefix: int = 0) -> ClipShape:
    """The shape of a sampling sequence: `history` clean frames (0 for none), then one noisy clip of `frames` frames."""
    return training_shape((frames,), grid, prefix, history)


class _Rows:
    """Collects runs of tokens that share kind, role and mask."""

    def __init__(self) -> None:
        self.length = 0
        self.meta: list[tuple[int, ...]] = []
        self.counts: list[int] = []
        self.frames: list[Tensor] = []
        self.positions: list[Tensor] = []

    def add(
        self,
        kind: int,
        role: int,
        clip: int,
        frame: Tensor,
        position: Tensor,
        keys: tuple[int, ...],
        queries: tuple[int, ...],
    ) -> None:
        """Append one run; `keys` and `queries` are its two intervals each."""
        count = position.shape[0]
        if not count:
            return
        clean = [
            value
            for pair in (keys[:2], keys[2:], queries[:2], queries[2:])
            for value in (pair if pair[1] > pair[0] else (0, 0))
        ]
        self.meta.append((kind, role, clip, *clean))
        self.counts.append(count)
        self.frames.append(frame)
        self.positions.append(position)
        self.length += count

    def finish(self) -> Layout:
        """All runs as one layout."""
        table = (
            torch.tensor(self.meta, dtype=torch.int64)
            .reshape(-1, 11)
            .repeat_interleave(torch.tensor(self.counts, dtype=torch.int64), dim=0)
        )
        empty = torch.zeros(0, dtype=torch.int64)
        return Layout(
            kind=table[:, 0],
            role=table[:, 1],
            clip=table[:, 2],
            frame=torch.cat([empty, *self.frames]),
            position=torch.cat([empty, *self.positions]),
            intervals=table[:, 3:7].to(torch.int32),
            columns=table[:, 7:11].to(torch.int32),
            sequence=torch.zeros(self.length, dtype=torch.int64),
        )


def _lengths(shape: ClipShape) -> tuple[int, int, int]:
    """(frame block B, end of the clean region, length of the sequence)."""
    block = shape.grid[0] * shape.grid[1] + 2
    clean_end = shape.prefix + block * sum(clip.frames for clip in shape.clips if clip.has_clean)
    return block, clean_end, clean_end + block * sum(clip.frames for clip in shape.clips if clip.has_noisy)


def _add_clean_frame(
    rows: _Rows, clip: int, frame: int, block: int, base: int, queries_end: int, later_noisy: tuple[int, int]
) -> None:
    """One clean frame: each role sees all stored before it and its own role; seen by all clean tokens from
    its role on.
    """
    slot = 0
    for role, count in ((IMG_START, 1), (CLEAN_PATCH, block - 2), (IMG_END, 1)):
        start = rows.length
        position = base + frame * block + slot + torch.arange(count)
        rows.add(
            CLEAN,
            role,
            clip,
            torch.full((count,), frame),
            position,
            (0, start + count, 0, 0),
            (start, queries_end, *later_noisy),
        )
        slot += count


def layout(shape: ClipShape) -> Layout:
    """The layout of one sequence (see the module's text).

    Positions: the prefix takes ``0 .. prefix-1``, and frame f ``prefix + f*B .. prefix + f*B + B-1`` in both its noisy
    and its clean copy (reference README section 3).
    """
    block, clean_end, length = _lengths(shape)
    rows, base = _Rows(), shape.prefix
    before = torch.arange(base)
    rows.add(PREFIX, 0, -1, before, before, (0, base, 0, 0), (0, length, 0, 0))

    clean_before, noisy_start, first = [], [], 0
    noisy_end = clean_end
    for k, clip in enumerate(shape.clips):
        clean_before.append(rows.length)
        noisy_start.append(noisy_end)
        noisy_end += block * clip.frames if clip.has_noisy else 0
        if clip.has_clean:
            for frame in range(first, first + clip.frames):
                _add_clean_frame(rows, k, frame, block, base, clean_end, (noisy_end, length))
        first += clip.frames

    first = 0
    for k, clip in enumerate(shape.clips):
        if clip.has_noisy:
            _add_noisy_clip(rows, k, first, clip.frames, block, base, clean_before[k])
        first += clip.frames
    assert rows.length == length
    return rows.finish()


def _add_noisy_clip(rows: _Rows, clip: int, first: int, frames: int, block: int, base: int, history_end: int) -> None:
    """One noisy clip: hint tokens of all frames, time tokens of all frames, patches of all frames; each role sees the
    roles up to its own.
    """
    start, end = rows.length, rows.length + frames * block
    frame = torch.arange(first, first + frames)
    slots = torch.arange(2, block)
    for role, frame_ids, position in (
        (DIFFUSION, frame, frame * block),
        (TIME, frame, frame * block + 1),
        (NOISY_PATCH, frame.repeat_interleave(block - 2), (frame[:, None] * block + slots).flatten()),
    ):
        begin = rows.length
        rows.add(
            NOISY,
            role,
            clip,
            frame_ids,
            base + position,
            (0, history_end, start, begin + len(position)),
            (begin, end, 0, 0),
        )


def pack(layouts: list[Layout], multiple: int = 1) -> Layout:
    """Several sequences in one row, padded at the end to a multiple of `multiple` tokens; sequences do not see each
    other.
    """
    parts = [{f.name: getattr(item, f.name) for f in fields(Layout)} for item in layouts]
    offset = 0
    for number, (part, item) in enumerate(zip(parts, layouts)):
        part.update(
            intervals=shift(item.intervals, offset),
            columns=shift(item.columns, offset),
            sequence=torch.full_like(item.sequence, number),
        )
        offset += len(item)
    count = -offset % multiple
    zeros = torch.zeros(count, dtype=torch.int64)
    padding = {f.name: zeros for f in fields(Layout)}
    padding.update(
        sequence=zeros - 1,
        intervals=padding_intervals(offset, count),
        columns=padding_intervals(offset, count, columns=True),
    )
    return Layout(**{f.name: torch.cat([part[f.name] for part in (*parts, padding)]) for f in fields(Layout)})
