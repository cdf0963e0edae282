"""Which frame sees which, and where it stands: masks, prefix enhancement, position tables, prefix lengths.  Needs torch
alone; what trains the model goes by the same rules.

Section numbers are those of tests/golden/vidgpt/README.md in megatron_videogpt.
"""

from __future__ import annotations

import torch
from torch import Tensor

CYCLIC, FIXED, ROPE = "cyclic", None, "rope"
PARTIAL = "partial"
FIRST = "first_frame"
PREVIOUS = "prev_frames_"


def prefix_lengths(given: int, chunk: int, frames: int) -> list[int]:
    """Lengths of a prompt that training draws from, for clips of so many frames (section 4)."""
    return list(range(given, frames, chunk))


def temporal_mask(
    causal: bool | str, prompt: int, frames: int, held: int = 0, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Which keys a frame sees at its own place (section 5), bool ``[frames, held + frames]``; None for all.

    causal: True; False for everything; "partial" for prompt frames that are causal and noisy ones that see everything.
    prompt: leading clean frames of the pass; held: cached frames, which come first.

    Raises:
        ValueError: cached frames of a model that is not causal.
    """
    if not causal and held:
        raise ValueError("is_causal=False: without causal attention what is cached would not hold; sample without")
    if not causal or (causal == PARTIAL and not prompt):
        return None
    mask = torch.ones(frames, held + frames, dtype=torch.bool, device=device).tril(held)
    if causal == PARTIAL:
        mask[prompt:] = True
    return mask


def previous_frames(enhance: str | None) -> int:
    """N of "prev_frames_N"; 1 for "first_frame", 0 for None.

    Raises:
        ValueError: anything else.
    """
    if enhance is None:
        return 0
    number = enhance.removeprefix(PREVIOUS)
    if enhance != FIRST and (number == enhance or not number.isdecimal() or int(number) < 1):
        raise ValueError(f"spatial_attn_enhance={enhance!r}: expected null, {PREVIOUS}N or {FIRST}")
    return 1 if enhance == FIRST else int(number)


def enhancing_frames(enhance: str | None, prompt: int, frames: int) -> list[list[int]]:
    """The frames whose patches each frame sees in the prefix enhancement, as often as they count (section 6).

    A prompt frame sees itself, a noisy frame the last N prompt frames; frame 0 stands for those that are not there.  In
    "first_frame" all see frame 0.

    Raises:
        ValueError: no prompt.
    """
    count = previous_frames(enhance)
    if not 1 <= prompt <= frames:
        raise ValueError(f"prompt={prompt}: the prefix enhancement needs 1 to {frames} prompt frames")
    if enhance == FIRST:
        return [[0]] * frames
    last = [max(prompt - 1 - back, 0) for back in range(count)]
    return [[frame] * count if frame < prompt else last for frame in range(frames)]


def kept_frames(enhance: str | None, written: int) -> list[int]:
    """Frames of a write that the prefix enhancement's cache keeps: the last N, of fewer each repeated (section 8)."""
    count = previous_frames(enhance)
    if enhance == FIRST:
        return [0]
    if written >= count:
        return list(range(written - count, written))
    return [frame for frame in range(written) for _ in range(count // written + 1)][:count]


def training_start(mode: str | None, frames: int, length: int, drawn: int) -> int:
    """The place of a training clip's first frame: `drawn`, one of the table's `length`, for clips as long as the table,
    0 for others (section 3).
    """
    return drawn if mode == CYCLIC and frames == length else 0


def places(mode: str | None, length: int, frames: int, start: int, cached: bool) -> list[int]:
    """Rows of the temporal table for the frames of a pass (section 3).

    start: frames of the whole video before the first of the pass (in training `training_start`).  cached: the pass goes
    on from a cache; without, fixed positions count from the beginning of the pass.

    Raises:
        ValueError: more frames than the table has rows.
    """
    if mode == CYCLIC:
        return [(start + frame) % length for frame in range(frames)]
    first = start if cached else 0
    if first + frames > length:
        raise ValueError(f"{first + frames} frames: the model has fixed positions for max_tpe_len={length}")
    return list(range(first, first + frames))


def turned_places(length: int, frames: int, keys: int, start: int) -> tuple[list[int], list[int]]:
    """Places of queries and of keys in the mode "rope": keys count from the first that is there, queries end at
    ``min(start + frames, length)`` (section 3).
    """
    end = min(start + frames, length)
    return list(range(end - frames, end)), list(range(keys))


def spatial_table(width: int, rows: int, columns: int, scale: float = 1.0) -> Tensor:
    """Sines and cosines of a patch's column, then of its row, float32 ``[rows * columns, width]`` (section 3)."""
    down, across = (torch.arange(size, dtype=torch.float32) / scale for size in (rows, columns))
    row, column = (part.flatten().double() for part in torch.meshgrid(down, across, indexing="ij"))
    return torch.cat([_waves(column, width // 4), _waves(row, width // 4)], -1).float()


def temporal_table(width: int, length: int, scale: float = 1.0) -> Tensor:
    """Sines and cosines of a frame's place, float32 ``[length, width]`` (section 3)."""
    return _waves(torch.arange(length, dtype=torch.float64) / scale, width // 2).float()


def _waves(places: Tensor, count: int) -> Tensor:
    angles = places[:, None] * 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    return torch.cat([angles.sin(), angles.cos()], -1)


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Adjacent pairs of ``[..., L, d]`` turned by ``place * 10000^(-2i/d)``; places ``[L]``."""
    dim = x.shape[-1]
    rates = 10000.0 ** (-torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angles = places.to(x.device, torch.float32)[:, None] * rates
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)
