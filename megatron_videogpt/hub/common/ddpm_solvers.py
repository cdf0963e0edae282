"""Solvers (`solvers_videogpt.Solver`) of a model that predicts noise and variance on the DDPM schedule (`ddpm.py`).

Predictions are ``[..., 2C, h, w]``: C channels of noise, then C of raw variance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

try:
    from .ddpm import Schedule, data_of, log_variance, posterior_mean, schedule_of
    from .solvers_videogpt import guided
except ImportError:  # the folder itself is on sys.path
    from ddpm import Schedule, data_of, log_variance, posterior_mean, schedule_of  # type: ignore[no-redef]
    from solvers_videogpt import guided  # type: ignore[no-redef]


def solver_of(name: str, steps: int, eta: float = 0.0) -> DDPM | DDIM:
    """ "ddpm" or "ddim" in so many steps; ValueError, one line, for what is neither."""
    if name not in ("ddpm", "ddim"):
        raise ValueError(f"solver={name!r}: choose ddpm or ddim")
    if eta and name == "ddpm":
        raise ValueError(f"eta={eta}: is of ddim; ddpm draws with the variance that the model predicts")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: expected 0 (no noise is drawn) to 1 (as much as ddpm's posterior has)")
    return DDPM(schedule_of(steps)) if name == "ddpm" else DDIM(schedule_of(steps), eta)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling with the learned variance."""

    schedule: Schedule

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solver.times`: original numbers of the kept steps, the noisiest first."""
        return tuple(reversed(self.schedule.timesteps.tolist()))

    def draws(self, number: int) -> bool:
        """All but the last step."""
        return number < len(self.schedule) - 1

    def step(
        self,
        number: int,
        z: Tensor,
        predicted: Tensor,
        without: Tensor | None = None,
        scale: float = 1.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """See `Solver.step`; guidance combines the noises, and the variance is the one with the condition."""
        index = len(self.schedule) - 1 - number
        eps, variance = _parts(predicted, without, scale)
        mean = posterior_mean(self.schedule, data_of(self.schedule, z, eps, index), z, index)
        if noise is None or not self.draws(number):
            return mean
        return mean + (0.5 * log_variance(self.schedule, variance, index)).exp() * noise


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021, Denoising Diffusion Implicit Models (equation 12); the predicted variance is not used.

    eta: share of the posterior's deviation that is drawn anew in each step; 0 draws nothing.
    """

    schedule: Schedule
    eta: float = 0.0

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solver.times`: original numbers of the kept steps, the noisiest first."""
        return tuple(reversed(self.schedule.timesteps.tolist()))

    def draws(self, number: int) -> bool:
        """All but the last step, unless eta is 0."""
        return self.eta > 0 and number < len(self.schedule) - 1

    def step(
        self,
        number: int,
        z: Tensor,
        predicted: Tensor,
        without: Tensor | None = None,
        scale: float = 1.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """See `Solver.step`; guidance combines the noises."""
        index = len(self.schedule) - 1 - number
        eps, _ = _parts(predicted, without, scale)
        data = data_of(self.schedule, z, eps, index)
        now = float(self.schedule.alphas_cumprod[index])
        then = float(self.schedule.alphas_cumprod[index - 1]) if index else 1.0
        drawn = self.eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        z = then**0.5 * data + (1 - then - drawn**2) ** 0.5 * eps
        return z if noise is None or not self.draws(number) else z + drawn * noise


def _parts(predicted: Tensor, without: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Noise and raw variance."""
    eps, variance = predicted.chunk(2, dim=-3)
    return (eps, variance) if without is None else (guided(eps, without.chunk(2, dim=-3)[0], scale), variance)
