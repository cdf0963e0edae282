"""What turns predictions into the next, less noisy latents: the part of a sampler that knows what its model predicts.

A sampler asks its model at each of a solver's `times` and hands the answers on; so the same sampler makes Euler steps
on a flow (`Euler`) or goes down a DDPM schedule (`ddpm_solvers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Solver(Protocol):
    """Steps from noise to data."""

    @property
    def times(self) -> tuple[float, ...]:
        """What the model is told at each step, in the order of the steps."""
        ...

    def draws(self, number: int) -> bool:
        """Whether step `number` takes noise."""
        ...

    def step(
        self,
        number: int,
        z: Tensor,
        predicted: Tensor,
        without: Tensor | None = None,
        scale: float = 1.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The latents after a step.

        Args:
            number: of the step, from 0.
            z: noisy latents ``[..., C, h, w]``.
            predicted: what the model says of them, and `without` the same without its condition; None for no guidance.
            scale: of classifier-free guidance.
            noise: standard normal, of the shape of z, where the step draws.
        """
        ...


@dataclass(frozen=True)
class Euler:
    """Euler steps on the flow ``z = t * data + (1 - t) * noise`` with a model that predicts the data.

    levels: t before each step, and after the last one, from 0 to 1; moves: of t in each step; rests: 1 - t before it.
    """

    levels: tuple[float, ...]
    moves: tuple[float, ...]
    rests: tuple[float, ...]

    @classmethod
    def of(cls, levels: Tensor) -> Euler:
        """Of levels, float32 ``[steps + 1]`` (`sampling_videogpt.sigmas`); moves and rests are float32, too."""
        moves = (levels[1:] - levels[:-1]).tolist()
        return cls(tuple(levels.tolist()), tuple(moves), tuple((1 - levels[:-1]).tolist()))

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solver.times`."""
        return self.levels[:-1]

    def draws(self, number: int) -> bool:
        """Never."""
        return False

    def step(
        self,
        number: int,
        z: Tensor,
        predicted: Tensor,
        without: Tensor | None = None,
        scale: float = 1.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """See `Solver.step`: velocities ``(data - z) / (1 - t)`` are what guidance combines."""
        velocity = (predicted - z) / self.rests[number]
        if without is not None:
            velocity = guided(velocity, (without - z) / self.rests[number], scale)
        return z + self.moves[number] * velocity


def guided(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: ``untold + scale * (told - untold)``."""
    return untold + scale * (told - untold)
