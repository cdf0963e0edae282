"""The DDPM schedule of 1000 steps, the steps of it that a sampler keeps, and the loss of a model that predicts noise
and variance (Ho et al. 2020; Nichol and Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models).  Needs torch
alone.

Betas are float64 up to the choice of steps, then rounded to float32, and everything else is computed in float32 from
them.  Published models were trained and sampled so; a schedule that stays float64 gives other losses (by 2e-3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
EDGE = 1.0 / 255  # half the width of a value's bin, of values in [-1, 1] that were 8 bits


@dataclass(frozen=True)
class Schedule:
    """Float32 ``[n]`` each, by the index of a kept step; names as in the papers.

    timesteps: int64, the original number of each kept step, which the model is told; log_beta: of betas;
    log_posterior: of the posterior's variance, index 0 as index 1; posterior_data, posterior_noisy: factors of x_0 and
    x_t in its mean.
    """

    timesteps: Tensor
    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    log_beta: Tensor
    log_posterior: Tensor
    posterior_data: Tensor
    posterior_noisy: Tensor

    def __len__(self) -> int:
        return len(self.betas)

    def to(self, device: torch.device | str) -> Schedule:
        """On a device, for indexing by timesteps that lie there."""
        return Schedule(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def kept_steps(count: int) -> list[int]:
    """The steps that `count` sampling steps keep: ``round(i * 999 / (count - 1))``, a running float sum, half to even.

    Raises:
        ValueError: none, or more than there are.
    """
    if not 1 <= count <= STEPS:
        raise ValueError(f"steps={count}: a schedule of {STEPS} steps can be sampled in 1 to {STEPS} of them")
    stride = (STEPS - 1) / (count - 1) if count > 1 else 0.0
    kept, now = [], 0.0
    for _ in range(count):
        kept.append(round(now))
        now += stride
    return kept


def schedule_of(count: int = STEPS) -> Schedule:
    """The schedule of so many sampling steps, on the CPU; of all of them for training."""
    kept = kept_steps(count)
    left, products = 1.0, []
    rise = (LAST_BETA - FIRST_BETA) / (STEPS - 1)
    for step in range(STEPS):
        left *= 1.0 - (step * rise + FIRST_BETA if step < STEPS - 1 else LAST_BETA)
        products.append(left)
    before = [1.0, *(products[step] for step in kept)]
    with torch.device("cpu"):
        return _tables(kept, [1.0 - products[step] / past for step, past in zip(kept, before)])


def _tables(kept: list[int], rates: list[float]) -> Schedule:
    betas = torch.tensor(rates, dtype=torch.float64).float()
    alphas = 1.0 - betas
    product = alphas.cumprod(0)
    before = torch.cat([torch.ones(1), product[:-1]])
    variance = betas * (1.0 - before) / (1.0 - product)
    # Index 0 is never drawn from, and its logarithm is none; a schedule of one step has no index 1.
    variance = torch.cat([variance[1:2] if len(kept) > 1 else betas, variance[1:]])
    return Schedule(
        timesteps=torch.tensor(kept),
        betas=betas,
        alphas_cumprod=product,
        sqrt_alphas_cumprod=product.sqrt(),
        sqrt_one_minus_alphas_cumprod=(1.0 - product).sqrt(),
        sqrt_recip_alphas_cumprod=(1.0 / product).sqrt(),
        sqrt_recipm1_alphas_cumprod=(1.0 / product - 1.0).sqrt(),
        log_beta=betas.log(),
        log_posterior=variance.log(),
        posterior_data=betas * before.sqrt() / (1.0 - product),
        posterior_noisy=(1.0 - before) * alphas.sqrt() / (1.0 - product),
    )


Index = Tensor | int
"""Index of a kept step: one for all, or an integer tensor that broadcasts with the latents, as `along` makes it."""


def along(index: Tensor, latents: Tensor) -> Tensor:
    """An index a sample, ``[B]``, or a frame, ``[B, T]``, as one that broadcasts with latents ``[B, T, C, h, w]``."""
    return index.reshape(*index.shape, *(1 for _ in range(latents.ndim - index.ndim)))


def noised(schedule: Schedule, data: Tensor, noise: Tensor, index: Index) -> Tensor:
    """``x_t = sqrt(abar) * data + sqrt(1 - abar) * noise``."""
    return schedule.sqrt_alphas_cumprod[index] * data + schedule.sqrt_one_minus_alphas_cumprod[index] * noise


def chained(noise: Tensor, alpha: float, dim: int = 1) -> Tensor:
    """Noise that goes on along time: ``x_0 = n_0, x_i = (alpha * x_{i-1} + n_i) / sqrt(1 + alpha^2)``."""
    frames = list(noise.unbind(dim))
    for number in range(1, len(frames)):
        frames[number] = (alpha * frames[number - 1] + frames[number]) / math.sqrt(1 + alpha**2)
    return torch.stack(frames, dim)


def data_of(schedule: Schedule, noisy: Tensor, noise: Tensor, index: Index) -> Tensor:
    """x_0 by a predicted noise, not clipped."""
    return schedule.sqrt_recip_alphas_cumprod[index] * noisy - schedule.sqrt_recipm1_alphas_cumprod[index] * noise


def posterior_mean(schedule: Schedule, data: Tensor, noisy: Tensor, index: Index) -> Tensor:
    """Mean of ``q(x_{t-1} | x_t, x_0)``."""
    return schedule.posterior_data[index] * data + schedule.posterior_noisy[index] * noisy


def log_variance(schedule: Schedule, variance: Tensor, index: Index) -> Tensor:
    """Of the model's step, from its raw output: -1 is the posterior's variance, 1 is beta."""
    share = (variance + 1) / 2
    return share * schedule.log_beta[index] + (1 - share) * schedule.log_posterior[index]


def variance_bits(
    schedule: Schedule, data: Tensor, noisy: Tensor, noise: Tensor, variance: Tensor, index: Tensor
) -> Tensor:
    """The variational bound's term of every element, in bits: the KL divergence of the model's step from the posterior,
    at index 0 the likelihood of 8-bit values.

    Args:
        data, noisy: x_0 and x_t, float32.
        noise: as predicted; no gradient goes into it, so that the bound trains the variance alone.
        variance: the model's raw output.
        index: integer, broadcasts with the latents, see `along`.
    """
    mean = posterior_mean(schedule, data_of(schedule, noisy, noise.detach(), index), noisy, index)
    log_model = log_variance(schedule, variance, index)
    log_true = schedule.log_posterior[index]
    apart = posterior_mean(schedule, data, noisy, index) - mean
    divergence = 0.5 * (-1.0 + log_model - log_true + (log_true - log_model).exp() + apart**2 * (-log_model).exp())
    likelihood = _log_mass(data, mean, 0.5 * log_model)
    return torch.where(index == 0, -likelihood, divergence) / math.log(2.0)


def _log_mass(values: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Of a Gaussian between the edges of each value's bin; the outermost bins are open."""
    centred, inverse = values - mean, (-log_deviation).exp()
    upper, lower = _normal_cdf(inverse * (centred + EDGE)), _normal_cdf(inverse * (centred - EDGE))
    inner = (upper - lower).clamp(min=1e-12).log()
    above = (1.0 - lower).clamp(min=1e-12).log()
    below = upper.clamp(min=1e-12).log()
    return torch.where(values < -0.999, below, torch.where(values > 0.999, above, inner))


def _normal_cdf(y: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))
