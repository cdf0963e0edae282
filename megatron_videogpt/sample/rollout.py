"""Clip after clip: finished frames join the history, and the model sees a sliding window of it (reference README, section 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config.schema import SampleConfig
from ..objective.noise import normal
from .denoise import Denoiser, Observer, denoise_clips

Noise = Callable[[int, int, str, tuple[int, ...]], Tensor]
"""`noise(video, clip, purpose, shape)` -> standard normal float32; purpose is "init" or "history"."""


def keyed_noise(keys: Sequence[int], seed: int) -> Noise:
    """Noise that depends on the video's key, the seed, the clip's number and the purpose alone, whatever else is in the batch."""
    return lambda video, clip, purpose, shape: normal(keys[video], f"sample/{seed}/{clip}/{purpose}", shape)


def rollout(
    denoiser: Denoiser,
    histories: list[Tensor],
    settings: SampleConfig,
    noise: Noise,
    observer: Observer | None = None,
) -> list[Tensor]:
    """Continue every video by the clips of ``settings.clips``.

    Args:
        histories: per video ``[H, C, h, w]`` clean latents, H may be 0 and may differ.
        settings: clips, window, steps, guidance, history_noise and time_shift are used.
        noise: where noise comes from; `keyed_noise` outside tests.
        observer: see `denoise.Observer`.

    Returns:
        Per video the new latents ``[sum(clips), C, h, w]``.

    Raises:
        ValueError: a clip that the window cannot hold.
    """
    longest = max(settings.clips)
    if longest > settings.window:
        raise ValueError(f"window={settings.window} cannot hold a clip of {longest} frames; use a window of {longest} or more, or shorter clips")
    known = list(histories)
    for number, frames in enumerate(settings.clips):
        fed = [history[max(0, len(history) - (settings.window - frames)) :] for history in known]
        if number and settings.history_noise:
            fed = [_mix(history, noise(video, number, "history", tuple(history.shape)), settings.history_noise) for video, history in enumerate(fed)]
        start = [noise(video, number, "init", (frames, *history.shape[1:])).to(history.device) for video, history in enumerate(known)]
        clips = denoise_clips(denoiser, fed, start, settings.steps, settings.guidance, settings.time_shift, observer)
        # The clean frames are kept: history noise is drawn anew for each clip and does not pile up.
        known = [torch.cat([history, clip]) for history, clip in zip(known, clips)]
    return [after[len(before) :] for before, after in zip(histories, known)]


def _mix(history: Tensor, noise: Tensor, level: float) -> Tensor:
    return (1 - level) * history + level * noise.to(history.device)
