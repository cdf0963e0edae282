"""The sampler of frame as prompt: chunk after chunk of a video, each from noise, with the finished frames as its prompt
(section 8 of tests/golden/vidgpt/README.md in megatron_videogpt).

It knows the network only as a `Memory`, which is shown finished frames, and the steps only as a `Solver`.  Needs torch
alone: this file is also part of every exported folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

try:
    from ..common.ddpm import STEPS, Schedule, noised
    from ..common.solvers_videogpt import Solver
except ImportError:  # the folder itself is on sys.path
    from ddpm import STEPS, Schedule, noised  # type: ignore[no-redef]
    from solvers_videogpt import Solver  # type: ignore[no-redef]


class Memory(Protocol):
    """A network with what it has been shown of several videos of one size."""

    @property
    def cached(self) -> bool:
        """Whether earlier frames stay remembered, so that only new ones are shown; else the whole window is."""
        ...

    def begin(self) -> None:
        """A rollout begins, or goes on from a whole window (`rollout`): nothing is remembered yet."""
        ...

    def show(self, frames: Tensor, start: int) -> None:
        """Finished frames ``[B, F, C, h, w]``, as they are fed; the first is frame `start` of the video."""
        ...

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """Of noisy frames ``[B, l, C, h, w]``, which follow what was shown, at the solver's time t: what the solver
        takes, and where guided the same without the text.
        """
        ...


@dataclass(frozen=True)
class Chunks:
    """What is sampled: so many chunks of `chunk` frames, each seeing at most `window` finished ones; guidance: scale of
    the text's, 1 for none.
    """

    chunk: int
    chunks: int
    window: int
    guidance: float = 1.0

    def check(self, given: int) -> None:
        """ValueError, one line, for what cannot be sampled.  given: frames to begin with."""
        if self.chunk < 1 or self.chunks < 1:
            raise ValueError(f"chunk={self.chunk}, chunks={self.chunks}: needs at least 1 chunk of 1 frame")
        if not 1 <= given <= self.window:
            raise ValueError(
                f"{given} given frames, window={self.window}: needs 1 to {self.window}; give the last ones, or sample "
                "with a longer window"
            )


Noise = Callable[[int, int, str, "tuple[int, ...]"], Tensor]
"""`noise(video, chunk, purpose, shape)` -> standard normal float32; purpose is "init" (a chunk's start), "prompt" (of
the frames that are shown before it) or "step0", "step1", ... (what a step draws).
"""
Blur = Callable[[Tensor, Tensor], Tensor]
"""`blur(frames, noise)` -> frames as they are shown."""


@dataclass(frozen=True)
class Step:
    """What an observer is shown before each step: numbers of chunk and step, the noisy latents, what was predicted with
    the text and, where guided, without.
    """

    chunk: int
    number: int
    z: Tensor
    predicted: Tensor
    without: Tensor | None


def prompt_blur(schedule: Schedule, step: int) -> Blur | None:
    """Prompt noise of a step of 1000, at index ``floor(step * n / 1000)`` of a schedule of n steps; None for steps up
    to 0: then the prompt is clean.

    Raises:
        ValueError: a step that there is none of.
    """
    if step >= STEPS:
        raise ValueError(f"prompt noise of step {step}: expected 0 (none) to {STEPS - 1}")
    if step <= 0:
        return None
    index = step * len(schedule) // STEPS
    return lambda frames, noise: noised(schedule, frames, noise, index)


def rollout(
    memory: Memory,
    given: Tensor,
    settings: Chunks,
    solver: Solver,
    noise: Noise,
    blur: Blur | None = None,
    observer: Callable[[Step], None] | None = None,
    anew: bool = False,
) -> Iterator[Tensor]:
    """Continue videos; yields each chunk's latents ``[B, chunk, C, h, w]``.

    No more than a window of latents is held, however many chunks there are; finished frames are kept without prompt
    noise.

    Args:
        given: frames to begin with, ``[B, F, C, h, w]``, at most a window.
        solver: makes a chunk of noise in its steps.
        blur: what adds prompt noise, drawn anew for all frames that are shown before a chunk.
        anew: once frames have left the window, a memory that remembers begins anew before each chunk, and is shown the
            whole window: what it remembers has never seen frames that are gone.

    Raises:
        ValueError: settings that cannot be sampled with, see `Chunks.check`.
    """
    settings.check(given.shape[1])
    memory.begin()
    known, new, first = given, given, given.shape[1]

    def drawn(chunk: int, purpose: str, like: Tensor) -> Tensor:
        shape = tuple(like.shape[1:])
        return torch.stack([noise(video, chunk, purpose, shape) for video in range(len(like))]).to(like.device)

    for chunk in range(settings.chunks):
        again = anew and first > settings.window
        if again:
            memory.begin()
        shown = new if memory.cached and not again else known
        fed = shown if blur is None else blur(shown, drawn(chunk, "prompt", shown))
        memory.show(fed, first - shown.shape[1])
        z = drawn(chunk, "init", given[:, :1].expand(-1, settings.chunk, -1, -1, -1))
        for number, t in enumerate(solver.times):
            predicted, without = memory.predict(z, t)
            if observer is not None:
                observer(Step(chunk, number, z, predicted, without))
            extra = drawn(chunk, f"step{number}", z) if solver.draws(number) else None
            z = solver.step(number, z, predicted, without, settings.guidance, extra)
        yield z
        new, first = z, first + settings.chunk
        known = torch.cat([known, z], 1)[:, -settings.window :]
