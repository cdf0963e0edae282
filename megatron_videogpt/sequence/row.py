"""What a micro-batch is: one packed row of tokens with everything that model and loss need."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """One packed row of L tokens, or a contiguous shard of l = L/CP of them: everything that model and loss need, on
    one device.

    intervals: int32 ``[L, 4]``, of the whole row on every rank; positions: int64 ``[l]``; hint_rows/hint_ids: int64,
    rows of hint tokens and which (0 ``<|diffusion|>``, 1 ``<img>``, 2 ``</img>``); time_rows/time_frames: int64, rows
    of time tokens and their noisy frames; noisy_rows/clean_rows: int64, rows of the patches; noisy/clean: float32
    ``[patches, p*p*C]``, channel fastest; noisy_grid/clean_grid: int64 ``[patches, 2]``, row and column in the position
    table; noisy_frame: int64, noisy frame of each noisy patch; timestep: float32 ``[F]``, of all noisy frames of the
    row; target: float32 like noisy, or empty when sampling; weight: float32 ``[noisy patches]``, share of each patch in
    its frame (1/P), 0 in samples that could not be read; counted: float32 ``[F]``, 1 for the noisy frames that this
    shard counts (those of readable samples on the first one, none on the others); frames: how many these are: what the
    loss is averaged over.
    """

    intervals: Tensor
    positions: Tensor
    hint_rows: Tensor
    hint_ids: Tensor
    time_rows: Tensor
    time_frames: Tensor
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
    counted: Tensor
    frames: int

    @property
    def length(self) -> int:
        """Tokens of the row, padding included."""
        return self.intervals.shape[0]

    def to(self, device: torch.device) -> Inputs:
        """A copy on `device`, whose work until then the host does not wait for."""

        def move(value: Tensor) -> Tensor:
            # Only pinned memory is copied in the background.
            pinned = value.pin_memory() if device.type != "cpu" and value.device.type == "cpu" else value
            return pinned.to(device, non_blocking=True)

        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: move(value) for name, value in moved.items() if isinstance(value, Tensor)})  # type: ignore[arg-type]

    def shard(self, rank: int, size: int) -> Inputs:
        """The contiguous part of a whole row that context parallel rank `rank` of `size` works on; `size` must divide
        the row's length.
        """
        if size == 1:
            return self
        assert self.length % size == 0 and self.positions.shape[0] == self.length
        each = self.length // size
        start = rank * each
        parts: dict[str, Tensor | int] = {"positions": self.positions[start : start + each]}
        if rank:
            parts |= {"counted": torch.zeros_like(self.counted), "frames": 0}
        for rows, others in ROWS.items():
            place = getattr(self, rows)
            here = (place >= start) & (place < start + each)
            parts[rows] = place[here] - start
            # Targets are absent when sampling.
            parts.update({name: getattr(self, name)[here] for name in others if len(getattr(self, name)) == len(place)})
        return replace(self, **parts)  # type: ignore[arg-type]


ROWS = {
    "hint_rows": ("hint_ids",),
    "time_rows": ("time_frames",),
    "noisy_rows": ("noisy", "noisy_grid", "noisy_frame", "target", "weight"),
    "clean_rows": ("clean", "clean_grid"),
}
"""Fields of `Inputs` with row numbers -> fields with one entry for each of these rows."""
