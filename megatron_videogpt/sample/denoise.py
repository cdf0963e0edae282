"""From noise to one clean clip: Euler steps on the flow, with history-conditioned guidance (reference README, section 9).

The sampler knows the model only as a function (`Denoiser`), so that any objective that predicts clean latents can be sampled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
"""`denoiser(histories, clips, t)`: per video a clean history ``[H, C, h, w]`` (H may be 0) and a noisy clip ``[G, C, h, w]``, all at
timestep t in [0, 1) -> the predicted clean clips ``[G, C, h, w]``.  Videos may differ in size and length."""

Observer = Callable[[int, list[Tensor], list[Tensor], "list[Tensor] | None"], None]
"""`observer(step, z, x1_cond, x1_uncond)`, called at every step before z moves on."""


def sigmas(steps: int, time_shift: float) -> Tensor:
    """Noise levels from 0 (noise) to 1 (data), float32 ``[steps + 1]``: ``i / steps``, then ``s / (s + f - f*s)`` with f = time_shift.

    Raises:
        ValueError: steps below 1 or time_shift not above 0.
    """
    if steps < 1 or not time_shift > 0:
        raise ValueError(f"sampling with steps={steps}, time_shift={time_shift}: needs at least 1 step and a time_shift above 0")
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    return even / (even + time_shift - time_shift * even)


def denoise_clips(
    denoiser: Denoiser,
    histories: list[Tensor],
    noises: list[Tensor],
    steps: int,
    guidance: float,
    time_shift: float = 1.0,
    observer: Observer | None = None,
) -> list[Tensor]:
    """Turn the noise of one clip per video into clean latents.

    With guidance s, ``v = v_uncond + s * (v_cond - v_uncond)``, where the unconditional prediction has no history; both go to the model
    in one call.  At guidance 1, or without any history, there is no unconditional prediction at all.

    Args:
        histories: per video ``[H, C, h, w]``, as fed (window and history noise already applied).
        noises: per video ``[G, C, h, w]``, standard normal, on the history's device.

    Returns:
        Per video ``[G, C, h, w]``.
    """
    levels = sigmas(steps, time_shift)
    guided = guidance != 1.0 and any(len(history) for history in histories)
    empty = [history[:0] for history in histories]
    clips = list(noises)
    for step in range(steps):
        now, move = float(levels[step]), float(levels[step + 1] - levels[step])
        left = float(1 - levels[step])
        if guided:
            both = denoiser(histories + empty, clips + clips, now)
            cond, uncond = both[: len(clips)], both[len(clips) :]
        else:
            cond, uncond = denoiser(histories, clips, now), None
        if observer is not None:
            observer(step, clips, cond, uncond)
        velocities = [(x1 - z) / left for x1, z in zip(cond, clips)]
        if uncond is not None:
            without = [(x1 - z) / left for x1, z in zip(uncond, clips)]
            velocities = [v0 + guidance * (v - v0) for v, v0 in zip(velocities, without)]
        clips = [z + move * v for z, v in zip(clips, velocities)]
    return clips
