"""The sampler: chunk after chunk over a sliding window of frames, with a cache that grows until the window moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...hub.common.sampling_videogpt import Denoiser, Observer, Settings, denoise_clips
from ..noise import mix
from .options import UNCACHED

FrameNoise = Callable[[int, str, int, "tuple[int, ...]"], Tensor]
"""`noise(video, purpose, first, shape)` -> standard normal float32 ``[n, C, h, w]`` of the frames from number `first`
on; each frame's is its own, whatever chunk it is in.  purpose: "init", frames being counted from the first new one, or
"prompt", counted from the first of the video.
"""


class Forgetful(Denoiser, Protocol):
    """A denoiser that can go on from keys and values of frames whose own past has left the window."""

    def forget(self, frames: list[int]) -> None:
        """So many of the oldest frames of each video leave; what is left stays as it is."""
        ...


def _forgetful(denoiser: Denoiser) -> Forgetful:
    """UserError for a denoiser that cannot do it."""
    if not hasattr(denoiser, "forget"):
        raise UserError(f'sample.window_end = "keep": must {UNCACHED}; use sample.cache=true')
    return denoiser  # type: ignore[return-value]


class Twice:
    """Every video with its condition, and again without: guidance is by the condition, and both have the prompt.

    `guided` steps ask for both, the others for the first ones alone.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner

    def begin(self, conditions: list[Tensor | None]) -> None:
        """See `Denoiser.begin`."""
        self.inner.begin([*conditions, *(None for _ in conditions)])

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        self.inner.remember(histories * 2, kept * 2)

    def forget(self, frames: list[int]) -> None:
        """See `Forgetful.forget`."""
        _forgetful(self.inner).forget(frames * 2)

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """See `Denoiser.predict`."""
        found, _ = self.inner.predict(clips * 2 if guided else clips, t, guided=False)
        return found[: len(clips)], found[len(clips) :] if guided else None


def pieces(clips: tuple[int, ...], chunk: int) -> list[list[int]]:
    """Chunks that each clip is made in: as many whole ones as it holds, then the rest; (3, 8), 3 -> [[3], [3, 3, 2]]"""
    return [[chunk] * (frames // chunk) + [frames % chunk] * (frames % chunk > 0) for frames in clips]


def chunks_of(
    denoiser: Denoiser,
    histories: list[Tensor],
    settings: Settings,
    noise: FrameNoise,
    keep: bool = False,
    conditions: list[Tensor | None] | None = None,
    observer: Observer | None = None,
) -> Iterator[list[Tensor]]:
    """Continue every video by the chunks `settings.clips`; yields per chunk the new latents of all videos ``[G, C, h,
    w]``.

    A finished frame is fed with the share `settings.history_noise` of noise, drawn once for it, so that keys and values
    stay valid.  Once the window is full, each chunk drops the oldest frames.  keep: what is left keeps the keys and
    values that have seen them, and a chunk is written with the frames before it still there, as published; positions
    go on.  Else all that is left is computed anew, from position 0.

    Args:
        denoiser: with keep a `Forgetful` one.
        histories: per video ``[H, C, h, w]`` clean latents, H may be 0 and may differ; the last ones that fit the
            window count.
        conditions: per video, see `Denoiser.begin`; None for none at all.
    """
    shown = list[Tensor | None]([None] * len(histories)) if conditions is None else conditions
    scales = [settings.guidance, *(scale for _, scale in settings.guidance_schedule)]
    guided = any(item is not None for item in shown) and any(scale != 1.0 for scale in scales)
    # Whoever cannot keep anything says so before the first step.
    able = _forgetful(denoiser) if keep else denoiser
    asked = Twice(able) if guided else able
    asked.begin(shown)
    counts, made = [len(history) for history in histories], 0

    level, room = settings.history_noise, settings.window - settings.clips[0]
    cut = [max(0, count - room) for count in counts]
    fed = [_noised(noise, level, video, first, histories[video][first:]) for video, first in enumerate(cut)]
    written = [0] * len(fed)
    for number, frames in enumerate(settings.clips):
        over = [max(0, len(past) - (settings.window - frames)) for past in fed]
        if keep:
            asked.remember(fed, written)
            if any(over):
                _forgetful(asked).forget(over)
        fed = [past[start:] for past, start in zip(fed, over)]
        if not keep:
            asked.remember(fed, [0 if start else old for start, old in zip(over, written)])
        written = [len(past) for past in fed]
        start = [
            noise(video, "init", made, (frames, *past.shape[1:])).to(past.device) for video, past in enumerate(fed)
        ]
        new = denoise_clips(asked, start, settings, guided, number, observer)
        yield new
        fed = [
            torch.cat([past, _noised(noise, level, video, count + made, clip)])
            for video, (past, count, clip) in enumerate(zip(fed, counts, new))
        ]
        made += frames


def _noised(noise: FrameNoise, level: float, video: int, first: int, frames: Tensor) -> Tensor:
    """Frames ``[n, C, h, w]`` of a video, the first of them number `first`, with that share of noise."""
    if not level:
        return frames
    drawn = noise(video, "prompt", first, tuple(frames.shape)).to(frames.device)
    return mix(frames, drawn, torch.full((len(frames),), 1 - level, device=frames.device))
