"""What an objective supplies, and the packed row it hands to the model.

An objective decides the sequence layout, the model's inputs and the loss; the trainer never branches on one.  A new objective is one file
and one entry in `objective/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from ..data.clips import Sample
from ..sequence.layout import Layout


@dataclass(frozen=True)
class Inputs:
    """One packed row of L tokens: everything that model and loss need, on one device.

    intervals: int32 ``[L, 4]``; positions: int64 ``[L]``; hint_rows/hint_ids: int64, rows of hint tokens and which (0 ``<|diffusion|>``, 1 ``<img>``,
    2 ``</img>``); time_rows: int64 ``[F]``, one per noisy frame; noisy_rows/clean_rows: int64, rows of the patches;
    noisy/clean: float32 ``[patches, p*p*C]``, channel fastest; noisy_grid/clean_grid: int64 ``[patches, 2]``, row and column in the position table;
    timestep: float32 ``[F]``; noisy_frame: int64, noisy frame of each noisy patch;
    target: float32 like noisy, or empty when sampling; weight: float32 ``[noisy patches]``, share of each patch in its frame (1/P).
    """

    intervals: Tensor
    positions: Tensor
    hint_rows: Tensor
    hint_ids: Tensor
    time_rows: Tensor
    noisy_rows: Tensor
    clean_rows: Tensor
    noisy: Tensor
    clean: Tensor
    noisy_grid: Tensor
    clean_grid: Tensor
    timestep: Tensor
    noisy_frame: Tensor
    target: Tensor
    weight: Tensor

    @property
    def length(self) -> int:
        """Tokens of the row, padding included."""
        return self.positions.shape[0]

    @property
    def frames(self) -> int:
        """Noisy frames of the row: what the loss is averaged over."""
        return self.timestep.shape[0]

    def to(self, device: torch.device) -> Inputs:
        """A copy on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class Objective(Protocol):
    """See the module's text; `prepare` is a pure function of the samples (and the keys they carry)."""

    def layout(self, sample: Sample) -> Layout:
        """Storage order, positions and mask of one sample."""

    def prepare(self, samples: list[Sample], multiple: int) -> Inputs:
        """One micro-batch as a packed row, padded to a multiple of `multiple` tokens: noise, timesteps and targets from each sample's key."""

    def loss(self, output: Tensor, inputs: Inputs) -> tuple[Tensor, int, Tensor]:
        """Model output -> (sum over frames, number of frames, detached loss per frame ``[F]``)."""
