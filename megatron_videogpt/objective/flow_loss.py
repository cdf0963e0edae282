"""The loss of objectives that denoise: squared error of predicted clean latents, and the same by noise level, by place
and by history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sequence.row import Row
from .base import Metric, Score
from .breakdown import Breakdown, grouped

NOISE_BINS = 5
"""Equal bins of the timestep, [0, 0.2) to [0.8, 1], for the loss by noise level."""


def _bin_metric(place: int) -> Metric:
    bounds = f"{place / NOISE_BINS:.1f}-{(place + 1) / NOISE_BINS:.1f}"
    return Metric(f"loss_t{bounds}", "loss_by_noise_level", f"t {bounds}")


METRICS = tuple(_bin_metric(place) for place in range(NOISE_BINS))
"""The loss by timestep, 0 noise and 1 data."""


def flow_metrics(breakdowns: Sequence[Breakdown]) -> tuple[Metric, ...]:
    """What `flow_score` has."""
    return METRICS + tuple(metric for one in breakdowns for metric in one.metrics)


def flow_loss(output: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """Squared error of each scored patch's latents, averaged inside a frame, summed over frames
    (tests/golden/README.md, section 8) -> (that sum, detached loss per frame ``[F]`` of this shard's patches).
    """
    error = (output - row.target).square().mean(dim=-1) * row.weight
    per_frame = torch.zeros_like(row.units["timestep"]).index_add(0, row.streams[row.scored]["frame"], error.detach())
    return error.sum(), per_frame


def flow_score(total: Tensor, per_frame: Tensor, row: Row, breakdowns: Sequence[Breakdown] = ()) -> Score:
    """Of what `flow_loss` gives, with its `flow_metrics`: see `Objective.score`."""
    place = (row.units["timestep"] * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    inside = [place == torch.arange(NOISE_BINS, device=place.device)[:, None]]
    if not torch.is_grad_enabled():
        inside += [one.inside(row) for one in breakdowns]
    return Score(total, row.count, *grouped(per_frame, row.counted, torch.cat(inside)))
