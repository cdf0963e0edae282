"""What an objective supplies: sequence layout, the model's inputs, its two ends, and the loss.  The trainer never
branches on one.

A new objective is a folder beside this file and an entry in `objective/build.py`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..data.plans import Sample
from ..sequence.layout import Layout
from ..sequence.row import Inputs


class Objective(Protocol):
    """See the module's text; `prepare` is a pure function of the samples (and the keys they carry)."""

    def layout(self, sample: Sample) -> Layout:
        """Storage order, positions and mask of one sample."""

    def prepare(self, samples: list[Sample], multiple: int) -> Inputs:
        """One micro-batch as a packed row, padded to a multiple of `multiple` tokens: noise, timesteps and targets from
        each sample's key.
        """

    def loss(self, output: Tensor, inputs: Inputs) -> tuple[Tensor, int, Tensor]:
        """Model output for a row or a shard -> (sum over its patches, frames that it counts, detached loss per frame
        ``[F]`` of its patches).

        Samples that are not scored add nothing to any of them.
        """
