"""Keys and values of finished frames: what the chunk-by-chunk sampler of frame as prompt remembers (section 8 of
tests/golden/vidgpt/README.md in megatron_videogpt).  Needs torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from .rules_frameprompt import kept_frames
except ImportError:  # the folder itself is on sys.path
    from rules_frameprompt import kept_frames  # type: ignore[no-redef]


class FramePromptCache:
    """Keys and values of the last `window` frames of several videos, and of those that the prefix enhancement sees.

    Temporal keys and values lie place by place, ``[B, S, frames, 2D]`` a block, in a ring: frame f of the video is in
    slot ``f % window``, where it overwrites frame ``f - window``; nothing is ever shifted.  Slots behind the ring hold
    the frames of the pass that is running, so that attention reads one piece of memory.

    window: frames that are kept; enhance: the model's spatial_attn_enhance.
    """

    def __init__(self, blocks: int, window: int, enhance: str | None) -> None:
        if window < 1:
            raise ValueError(f"window={window}: a cache keeps at least 1 frame")
        self.window, self.enhance, self.written = window, enhance, 0
        self.temporal: list[Tensor | None] = [None] * blocks
        self.enhancing: list[Tensor | None] = [None] * blocks

    @property
    def held(self) -> int:
        """Frames that are in the ring."""
        return min(self.written, self.window)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.numel() * part.element_size() for part in (*self.temporal, *self.enhancing) if part is not None)

    def joined(self, block: int, kv: Tensor) -> Tensor:
        """All keys and values ``[B, S, held + T, 2D]``, those of the pass, ``[B, T, S, 2D]``, last; held ones in the
        ring's order.
        """
        frames = kv.shape[1]
        room = self._room(block, kv)
        room[:, :, self.held : self.held + frames] = kv.transpose(1, 2)
        return room[:, :, : self.held + frames]

    def ages(self) -> list[int]:
        """Of each held frame in the ring's order its number, the oldest one's being 0."""
        oldest = self.written % self.window if self.written > self.window else 0
        return [(slot - oldest) % self.held for slot in range(self.held)]

    def write(self, block: int, kv: Tensor) -> None:
        """Keep the keys and values ``[B, T, S, 2D]`` of new frames; `advance` follows after the last block."""
        room, kept = self._room(block, kv), min(kv.shape[1], self.window)
        last = self.written + kv.shape[1]
        for frame in range(last - kept, last):
            room[:, :, frame % self.window] = kv[:, frame - self.written]

    def enhancing_keys(self, block: int) -> Tensor:
        """Keys and values that noisy frames see in the prefix enhancement, ``[B, N * S, 2D]``."""
        kept = self.enhancing[block]
        if kept is None:
            raise ValueError("a cache without frames: write the given ones first")
        return kept

    def write_enhancing(self, block: int, kv: Tensor) -> None:
        """Keep the prefix enhancement's of new frames, ``[B, T, S, 2D]``, for those of the last write; in "first_frame"
        the first write's stay.
        """
        if self.enhance == "first_frame" and self.written:
            return
        frames = kept_frames(self.enhance, kv.shape[1])
        self.enhancing[block] = torch.cat([kv[:, frame] for frame in frames], 1)

    def advance(self, frames: int) -> None:
        """So many frames were written."""
        self.written += frames

    def in_order(self, block: int) -> Tensor:
        """Held temporal keys and values ``[B, held, S, 2D]``, the oldest frame first; a copy."""
        room, ages = self.temporal[block], self.ages()
        if room is None:
            raise ValueError("a cache without frames: write the given ones first")
        slots = sorted(range(self.held), key=lambda slot: ages[slot])
        return torch.stack([room[:, :, slot] for slot in slots], 1)

    def _room(self, block: int, kv: Tensor) -> Tensor:
        """The ring of a block with slots behind it for the frames of a pass; begun, or made longer, where needed."""
        room, (batch, frames, patches, width) = self.temporal[block], kv.shape
        if room is not None and (room.shape[0], room.shape[1]) != (batch, patches):
            raise ValueError(
                f"a cache of {room.shape[0]} videos of {room.shape[1]} patches cannot go with {batch} of {patches}: "
                "use a cache of its own"
            )
        if room is None or room.shape[2] < self.window + frames:
            wider = kv.new_empty(batch, patches, self.window + frames, width)
            if room is not None:
                wider[:, :, : room.shape[2]] = room
            self.temporal[block] = room = wider
        return room
