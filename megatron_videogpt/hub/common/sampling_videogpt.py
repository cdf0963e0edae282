"""The sampler: from noise to clean clips, clip after clip over a sliding window (section 9 of tests/golden/README.md in
megatron_videogpt).

It knows the model only as a `Denoiser`, which remembers the clean history; whether that means keys and values or
computing it again is the denoiser's own affair.  Pure torch: this file is also part of every exported Hugging Face
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

try:
    from .solvers_videogpt import Euler
except ImportError:  # the folder itself is on sys.path
    from solvers_videogpt import Euler  # type: ignore[no-redef]


class Denoiser(Protocol):
    """A model with its memory of several videos' histories, which may differ in size and length."""

    def begin(self, conditions: list[Tensor | None]) -> None:
        """A rollout of so many videos begins, and nothing is remembered yet.

        conditions: per video what it is to show beside its history: int64 ``[1]``, the number of a class, or float32
        ``[T, E]``, features of a text; None for nothing.
        """
        ...

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """What the next clips follow: per video clean latents ``[H, C, h, w]``, H may be 0.

        kept: per video how many of the leading frames are exactly those of the last call; their keys and values still
        hold.  0 after the window has moved: positions count from its first frame, and deeper layers have seen the
        frames before it.
        """
        ...

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """Per video a noisy clip ``[G, C, h, w]`` at timestep t in [0, 1) -> the predicted clean clips given conditions
        and histories, and, where `guided`, those given neither (their positions start at 0).
        """
        ...


@dataclass(frozen=True)
class Settings:
    """How a rollout is sampled.

    clips: frames of each clip, in order; window: most frames that the model sees at once, history and clip together,
    above every clip that follows something; steps: Euler steps a clip; guidance: scale of classifier-free guidance by
    history and condition together, 1 for none; guidance_schedule: (t, scale) pairs in ascending order of t, each scale
    in force from its t on (before the first one `guidance` is), empty for one scale throughout; history_noise: share of
    noise mixed into the history from the second clip on; time_shift: see `sigmas`.
    """

    clips: tuple[int, ...]
    window: int
    steps: int
    guidance: float = 1.0
    guidance_schedule: tuple[tuple[float, float], ...] = ()
    history_noise: float = 0.0
    time_shift: float = 1.0

    def check(self, given: bool = True) -> None:
        """ValueError, one line, for settings that cannot be sampled with.  given: there is a history before the first
        clip.
        """
        sigmas(self.steps, self.time_shift)
        if not self.clips or min(self.clips) < 1:
            raise ValueError(f"clips={list(self.clips)}: needs at least one clip, each of 1 frame or more")
        for number, frames in enumerate(self.clips, 1):
            # A clip that fills the window would see nothing of what it continues, and guidance would be off.
            least = frames + (1 if given or number > 1 else 0)
            if self.window < least:
                raise ValueError(
                    f"clips={list(self.clips)}, window={self.window}: clip {number} of {frames} frames leaves "
                    "no room for "
                    f"{'a frame of history' if frames <= self.window else 'itself'}; use a window of {least} "
                    "or more, or shorter clips"
                )
        if not 0 <= self.history_noise < 1:
            raise ValueError(f"history_noise={self.history_noise}: must be at least 0 and below 1")
        starts = [start for start, _ in self.guidance_schedule]
        if starts != sorted(set(starts)) or any(not 0 <= start < 1 for start in starts):
            raise ValueError(
                f"guidance_schedule={list(self.guidance_schedule)}: needs (t, scale) pairs, t ascending from "
                "0 to below 1"
            )

    def scale_at(self, t: float) -> float:
        """The guidance scale of a step that starts at t."""
        # Steps that ought to start at a boundary may miss it by float32 rounding.
        return [self.guidance, *(scale for start, scale in self.guidance_schedule if start <= t + 1e-6)][-1]


Noise = Callable[[int, int, str, "tuple[int, ...]"], Tensor]
"""`noise(video, clip, purpose, shape)` -> standard normal float32; purpose is "init" or "history"."""


@dataclass(frozen=True)
class Step:
    """What an observer is shown before each Euler step: number of the clip and of the step, the noisy latents of all
    videos, the predictions with and (where the step is guided) without history.
    """

    clip: int
    number: int
    z: list[Tensor]
    x1_cond: list[Tensor]
    x1_uncond: list[Tensor] | None


Observer = Callable[[Step], None]


class Recompute:
    """A denoiser without a cache: the history goes through the model again at every step.

    function: `function(histories, clips, t, conditions)` -> predicted clean clips; it gets both branches of guidance in
    one call.
    """

    def __init__(
        self, function: Callable[[list[Tensor], list[Tensor], float, list[Tensor | None]], list[Tensor]]
    ) -> None:
        self.function = function
        self.histories: list[Tensor] = []
        self.conditions: list[Tensor | None] = []

    def begin(self, conditions: list[Tensor | None]) -> None:
        """See `Denoiser.begin`."""
        self.histories, self.conditions = [], list(conditions)

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        self.histories = list(histories)

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """See `Denoiser.predict`."""
        if not guided:
            return self.function(self.histories, clips, t, self.conditions), None
        histories = self.histories + [history[:0] for history in self.histories]
        both = self.function(histories, clips + clips, t, [*self.conditions, *(None for _ in clips)])
        return both[: len(clips)], both[len(clips) :]


def sigmas(steps: int, time_shift: float) -> Tensor:
    """Noise levels from 0 (noise) to 1 (data), float32 ``[steps + 1]``: ``i / steps``, then ``s / (s + f - f*s)`` with
    f = time_shift.

    Raises:
        ValueError: steps below 1 or time_shift not above 0.
    """
    if steps < 1 or not time_shift > 0:
        raise ValueError(
            f"sampling with steps={steps}, time_shift={time_shift}: needs at least 1 step and a time_shift above 0"
        )
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    return even / (even + time_shift - time_shift * even)


def denoise_clips(
    denoiser: Denoiser,
    noises: list[Tensor],
    settings: Settings,
    given: bool = True,
    clip: int = 0,
    observer: Observer | None = None,
) -> list[Tensor]:
    """Turn the noise of one clip per video into clean latents, given what the denoiser remembers.

    With scale s, ``v = v_uncond + s * (v_cond - v_uncond)``; at scale 1, or where nothing is given, the unconditional
    branch is not computed.

    Args:
        noises: per video ``[G, C, h, w]``, standard normal.
        given: whether any video has a history or a condition.

    Returns:
        Per video ``[G, C, h, w]``.
    """
    solver = Euler.of(sigmas(settings.steps, settings.time_shift))
    clips = list(noises)
    for number, now in enumerate(solver.times):
        scale = settings.scale_at(now)
        cond, uncond = denoiser.predict(clips, now, guided=given and scale != 1.0)
        if observer is not None:
            observer(Step(clip, number, clips, cond, uncond))
        without: list[Tensor | None] = [None] * len(clips) if uncond is None else list(uncond)
        clips = [solver.step(number, z, told, untold, scale) for z, told, untold in zip(clips, cond, without)]
    return clips


def rollout(
    denoiser: Denoiser,
    histories: list[Tensor],
    settings: Settings,
    noise: Noise,
    observer: Observer | None = None,
    conditions: list[Tensor | None] | None = None,
) -> Iterator[list[Tensor]]:
    """Continue every video by the clips of the settings; yields per clip the new latents of all videos ``[G, C, h,
    w]``.

    No more than a window of latents is held, however many clips there are.

    Args:
        histories: per video ``[H, C, h, w]`` clean latents, H may be 0 and may differ.
        noise: where noise comes from.
        conditions: per video, see `Denoiser.begin`; None for none at all.

    Raises:
        ValueError: settings that cannot be sampled with, see `Settings.check`.
    """
    settings.check(any(len(history) for history in histories))
    shown = [None for _ in histories] if conditions is None else conditions
    denoiser.begin(shown)
    conditioned = any(condition is not None for condition in shown)
    known, valid = list(histories), [0] * len(histories)
    for number, frames in enumerate(settings.clips):
        room = settings.window - frames
        cut = [max(0, len(history) - room) for history in known]
        known = [history[start:] for history, start in zip(known, cut)]
        noised = bool(number and settings.history_noise)
        kept = [0 if start or noised else old for start, old in zip(cut, valid)]
        fed = (
            [
                _mix(past, noise(video, number, "history", tuple(past.shape)), settings.history_noise)
                for video, past in enumerate(known)
            ]
            if noised
            else known
        )
        denoiser.remember(fed, kept)
        # Frames that were fed with noise are not what the next clip's history holds.
        valid = [0 if noised else len(past) for past in known]
        start = [
            noise(video, number, "init", (frames, *past.shape[1:])).to(past.device) for video, past in enumerate(known)
        ]
        given = conditioned or any(len(past) for past in known)
        clips = denoise_clips(denoiser, start, settings, given, number, observer)
        yield clips
        # The clean frames are kept: history noise is drawn anew for each clip and does not pile up.
        known = [torch.cat([past, clip]) for past, clip in zip(known, clips)]


def _mix(history: Tensor, noise: Tensor, level: float) -> Tensor:
    return (1 - level) * history + level * noise.to(history.device)


def continue_videos(
    denoiser: Denoiser,
    histories: list[Tensor],
    settings: Settings,
    noise: Noise,
    observer: Observer | None = None,
    conditions: list[Tensor | None] | None = None,
) -> list[Tensor]:
    """All clips of `rollout` joined: per video the new latents ``[sum(clips), C, h, w]``."""
    clips = list(rollout(denoiser, histories, settings, noise, observer, conditions))
    return [torch.cat(parts) for parts in zip(*clips)]
