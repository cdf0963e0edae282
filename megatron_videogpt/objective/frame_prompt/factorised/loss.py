"""The loss of a network that predicts noise and variance (Nichol and Dhariwal 2021, Improved Denoising Diffusion
Probabilistic Models; reference README section 7), patch by patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ....hub.common.ddpm import STEPS, Schedule, schedule_of, variance_bits
from ....sequence.row import Row
from ...base import Metric, Score
from ...breakdown import Breakdown

BINS = 5
"""Equal bins of the timestep for the loss by noise level: the first one has the least noise."""


def _bin_metric(place: int) -> Metric:
    first, last = place * STEPS // BINS, (place + 1) * STEPS // BINS - 1
    return Metric(f"loss_t{first}-{last}", "loss_by_noise_level", f"t {first}-{last}")


METRICS = (
    Metric("noise_error", "loss_part", "squared error of the noise"),
    Metric("variance_bits", "loss_part", "variance, bits"),
    *map(_bin_metric, range(BINS)),
)


# One for each device, as a step may not wait for tables to get there.
@lru_cache(maxsize=8)
def training_schedule(device: torch.device) -> Schedule:
    """All steps."""
    return schedule_of().to(device)


def noise_and_variance(output: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The head's output ``[n, cells * 2C]`` -> predicted noise and raw variance ``[n, cells * C]``."""
    noise, variance = output.unflatten(1, (cells, -1)).chunk(2, dim=2)
    return noise.flatten(1), variance.flatten(1)


def token_losses(output: Tensor, row: Row, cells: int) -> tuple[Tensor, Tensor]:
    """Of scored tokens float32 ``[n]``, means over their values: squared error of the noise, and the variational
    bound's term in bits, which trains the variance alone.  cells: latent cells of a patch.
    """
    noise, variance = noise_and_variance(output, cells)
    tokens = row.streams["noisy"]
    step = row.units["timestep"].index_select(0, tokens["frame"])[:, None]
    schedule = training_schedule(output.device)
    bits = variance_bits(schedule, tokens["start"], tokens["value"], noise, variance, step)
    return (row.target - noise).square().mean(1), bits.mean(1)


def metrics_of(breakdowns: Sequence[Breakdown]) -> tuple[Metric, ...]:
    """What `score_of` has."""
    return METRICS + tuple(metric for one in breakdowns for metric in one.metrics)


def score_of(output: Tensor, row: Row, cells: int, breakdowns: Sequence[Breakdown] = ()) -> Score:
    """See `Objective.score`: both terms, averaged in a frame, summed over noisy frames; `metrics_of` beside them."""
    error, bits = token_losses(output, row, cells)
    total = ((error + bits) * row.weight).sum()
    values = torch.stack([error, bits, error + bits]).detach() * row.weight
    timestep = row.units["timestep"]
    places = torch.arange(BINS, device=timestep.device)[:, None]
    inside = timestep * BINS // STEPS == places
    if not torch.is_grad_enabled():
        inside = torch.cat([inside, *(one.inside(row) for one in breakdowns)])
    of_token = inside.index_select(1, row.streams["noisy"]["frame"])
    sums = torch.cat([values[:2].sum(1), (values[2] * of_token).sum(1)])
    counts = torch.cat([row.counted.sum().expand(2), (row.counted * inside).sum(1)])
    return Score(total, row.count, sums, counts.long())
