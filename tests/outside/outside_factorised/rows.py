"""Sequences of frames with their texts as one packed row: masks in space and time, and the side inputs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.sequence.intervals import padding_intervals
from megatron_videogpt.sequence.row import Context, Mask, Row, Stream, grouped_mask


class Video(NamedTuple):
    """One sequence of F frames of n cells, ready to be packed.

    patch, target: ``[F, n, C]``, what the network gets and what it is to say; words: ``[T, E]``; level: ``[F]``, what
    share of a frame is data; prompt: how many frames are given, and so not predicted; scored: see `plans.Sample`.
    """

    patch: Tensor
    target: Tensor
    words: Tensor
    level: Tensor
    prompt: int = 0
    scored: bool = True

    @property
    def frames(self) -> int:
        """F."""
        return self.patch.shape[0]

    @property
    def cells(self) -> int:
        """n."""
        return self.patch.shape[1]


def spatial_mask(videos: Sequence[Video], length: int) -> Mask:
    """Tokens of a frame see each other."""
    sizes = [video.cells for video in videos for _ in range(video.frames)]
    return grouped_mask(_blocks(sizes, length, causal=False), _alike(sizes))


def temporal_mask(videos: Sequence[Video], length: int) -> Mask:
    """A token sees its cell in its own and earlier frames: in cell-major order, a causal block for each cell."""
    order, sizes, start = [], [], 0
    for video in videos:
        count = video.frames * video.cells
        order.append((start + torch.arange(count)).view(video.frames, video.cells).T.flatten())
        sizes += [video.frames] * video.cells
        start += count
    by_token = torch.cat([*order, torch.arange(start, length)])
    intervals = torch.empty(length, 4, dtype=torch.int32)
    intervals[by_token] = _blocks(sizes, length, causal=True)
    return grouped_mask(intervals, _alike(sizes), by_token)


def _blocks(sizes: list[int], length: int, causal: bool) -> Tensor:
    """int32 ``[length, 4]``: blocks of these sizes, one after another, whose tokens see each other; causal: only
    themselves and those before them.
    """
    each = torch.tensor(sizes)
    first = (each.cumsum(0) - each).repeat_interleave(each)
    own = torch.arange(len(first))
    end = own + 1 if causal else first + each.repeat_interleave(each)
    nothing = torch.zeros_like(own)
    intervals = torch.stack([first, end, nothing, nothing], dim=1).int()
    return torch.cat([intervals, padding_intervals(len(own), length - len(own))])


def _alike(sizes: list[int]) -> tuple[int, int]:
    """How many blocks at the start are of one size, and that size."""
    return next((n for n, size in enumerate(sizes) if size != sizes[0]), len(sizes)), sizes[0]


def word_intervals(video: Video, first: int) -> Tensor:
    """int32 ``[F * n, 4]``: the words that each token sees, more from frame to frame, then fewer again, and always the
    last one; `first` is the number of the video's first word in the row.
    """
    words = len(video.words)
    seen = torch.arange(video.frames) % words + 1
    start, nothing = torch.full_like(seen, first), torch.zeros_like(seen)
    last = torch.where(seen < words, first + words - 1, nothing)
    after = torch.where(seen < words, first + words, nothing)
    return torch.stack([start, first + seen, last, after], dim=1).int().repeat_interleave(video.cells, dim=0)


def assemble(videos: Sequence[Video], multiple: int) -> Row:
    """Packs videos into one row, padded to a multiple of `multiple` tokens.

    Streams: ``all`` (patch ``[n, C]``) and ``scored`` (frame: its number in the row).  Units are the frames, with their
    level and their number in the video; those that are given are not counted.  Side inputs: the words, which of them
    each token sees, and the frame of each token.
    """
    cells = torch.tensor([video.cells for video in videos for _ in range(video.frames)])
    real = int(cells.sum())
    length = -(-real // multiple) * multiple
    number = torch.cat([torch.arange(video.frames) for video in videos])
    predicted = torch.cat([torch.arange(video.frames) >= video.prompt for video in videos])
    readable = torch.cat([torch.full((video.frames,), float(video.scored)) for video in videos])
    counted = readable * predicted
    frame = torch.arange(len(cells)).repeat_interleave(cells)
    scored = predicted[frame].nonzero().flatten()
    firsts = torch.tensor([0, *(len(video.words) for video in videos)]).cumsum(0).tolist()
    seen = torch.cat([word_intervals(video, first) for video, first in zip(videos, firsts)])
    positions = torch.cat([torch.arange(video.frames * video.cells) for video in videos])
    patch, target = (
        torch.cat([getattr(video, name).flatten(0, 1) for video in videos]) for name in ("patch", "target")
    )
    return Row(
        masks=(spatial_mask(videos, length), temporal_mask(videos, length)),
        positions=F.pad(positions, (0, length - real)),
        streams={
            "all": Stream(torch.arange(real), {"patch": patch}),
            "scored": Stream(scored, {"frame": frame[scored]}),
        },
        scored="scored",
        target=target[scored],
        weight=(counted / cells)[frame[scored]],
        counted=counted,
        count=int(counted.sum()),
        units={"level": torch.cat([video.level for video in videos]), "number": number},
        context={
            "words": Context(torch.cat([video.words for video in videos])),
            "seen": Context(torch.cat([seen, padding_intervals(0, length - real)]), per_token=True),
            "frame": Context(F.pad(frame, (0, length - real)), per_token=True),
        },
    )
