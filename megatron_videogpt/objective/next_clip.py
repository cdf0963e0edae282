"""Next clip diffusion: denoise every clip given the clean clips before it (Video-GPT; reference README sections 2-8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.clips import Sample
from ..sequence.layout import CLEAN, CLEAN_PATCH, DIFFUSION, IMG_END, IMG_START, NOISY, NOISY_PATCH, TIME, Layout, layout, pack, training_shape
from .base import Inputs
from .noise import mix, normal, posterior, uniform


def patchify(latents: Tensor, patch: int) -> Tensor:
    """``[F, C, h, w]`` -> ``[F*P, p*p*C]``: patches row by row, inside a patch row, column, channel (channel fastest)."""
    frames, channels, height, width = latents.shape
    grid = latents.reshape(frames, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, patch * patch * channels)


def unpatchify(patches: Tensor, frames: int, grid: tuple[int, int], patch: int) -> Tensor:
    """``[F*P, p*p*C]`` -> ``[F, C, h, w]``; the inverse of `patchify`."""
    rows, columns = grid
    cells = patches.reshape(frames, rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(frames, -1, rows * patch, columns * patch)


def grid_of(latents: Tensor, patch: int) -> tuple[int, int]:
    """Patch rows and columns of latents ``[..., h, w]``."""
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def table_places(frames: int, grid: tuple[int, int], side: int) -> Tensor:
    """(row, column) in the ``side x side`` position table of every patch of `frames` frames ``[F*P, 2]``: the centred crop."""
    rows, columns = grid
    top, left = (side - rows) // 2, (side - columns) // 2
    places = torch.cartesian_prod(torch.arange(top, top + rows), torch.arange(left, left + columns))
    return places.repeat(frames, 1)


@dataclass(frozen=True)
class Sequence:
    """One sequence ready to be packed: its layout, the latents of its noisy and clean frames ``[F, C, h, w]`` as fed to the model, a timestep per
    noisy frame, the targets (None when sampling), and whether they count in the loss."""

    layout: Layout
    noisy: Tensor
    clean: Tensor
    timestep: Tensor
    target: Tensor | None = None
    scored: bool = True


def assemble(sequences: list[Sequence], patch: int, table_side: int, multiple: int) -> Inputs:
    """Packs sequences into one row of inputs, padded to a multiple of `multiple` tokens."""
    row = pack([item.layout for item in sequences], multiple)
    frames = torch.tensor([item.noisy.shape[0] for item in sequences])
    patches = torch.tensor([item.noisy.shape[-2] * item.noisy.shape[-1] // patch**2 for item in sequences])
    hints = [(0, NOISY, DIFFUSION), (1, CLEAN, IMG_START), (2, CLEAN, IMG_END)]
    hint_rows = [row.rows(kind, role) for _, kind, role in hints]
    places = {kind: [table_places(len(getattr(item, kind)), grid_of(item.noisy, patch), table_side) for item in sequences] for kind in ("noisy", "clean")}
    per_frame = patches.repeat_interleave(frames)
    counted = torch.tensor([float(item.scored) for item in sequences]).repeat_interleave(frames)
    noisy = torch.cat([patchify(item.noisy, patch) for item in sequences])
    targets = [patchify(item.target, patch) for item in sequences if item.target is not None]
    return Inputs(
        intervals=row.intervals,
        positions=row.position,
        hint_rows=torch.cat(hint_rows),
        hint_ids=torch.cat([torch.full_like(rows, number) for rows, (number, _, _) in zip(hint_rows, hints)]),
        time_rows=row.rows(NOISY, TIME),
        time_frames=torch.arange(len(per_frame)),
        noisy_rows=row.rows(NOISY, NOISY_PATCH),
        clean_rows=row.rows(CLEAN, CLEAN_PATCH),
        noisy=noisy,
        clean=torch.cat([patchify(item.clean, patch) for item in sequences]),
        noisy_grid=torch.cat(places["noisy"]),
        clean_grid=torch.cat(places["clean"]),
        timestep=torch.cat([item.timestep for item in sequences]),
        noisy_frame=torch.arange(len(per_frame)).repeat_interleave(per_frame),
        target=torch.cat(targets) if targets else noisy[:0],
        weight=(counted / per_frame).repeat_interleave(per_frame),
        counted=counted,
        frames=int(counted.sum()),
    )


@dataclass(frozen=True)
class NextClipDiffusion:
    """The objective.  patch_size, table_side: of the model; clean_retention: beta of the clean copies' noise."""

    patch_size: int
    table_side: int
    clean_retention: float = 0.9

    def layout(self, sample: Sample) -> Layout:
        """See `Objective.layout`."""
        return layout(training_shape(sample.clips, grid_of(sample.mean, self.patch_size)))

    def sequence(self, sample: Sample) -> Sequence:
        """One sample with its noise (section 8): a timestep per clip, a retention per clean frame, two draws from the posterior."""
        key, shape = sample.key, tuple(sample.mean.shape)
        target = posterior(sample.mean, sample.logvar, key, "target posterior")
        timestep = uniform(key, "timestep", len(sample.clips)).repeat_interleave(torch.tensor(sample.clips))
        kept = sum(sample.clips[:-1])
        clean = posterior(sample.mean, sample.logvar, key, "clean posterior")[:kept]
        retention = self.clean_retention + (1 - self.clean_retention) * uniform(key, "clean retention", shape[0])[:kept]
        return Sequence(
            layout=self.layout(sample),
            noisy=mix(target, normal(key, "noise", shape), timestep),
            clean=mix(clean, normal(key, "clean noise", shape)[:kept], retention),
            timestep=timestep,
            target=target,
            scored=sample.scored,
        )

    def prepare(self, samples: list[Sample], multiple: int) -> Inputs:
        """See `Objective.prepare`."""
        return assemble([self.sequence(sample) for sample in samples], self.patch_size, self.table_side, multiple)

    def loss(self, output: Tensor, inputs: Inputs) -> tuple[Tensor, int, Tensor]:
        """Squared error of each patch's latents, averaged inside a frame, summed over frames (section 8)."""
        error = (output - inputs.target).square().mean(dim=-1) * inputs.weight
        per_frame = torch.zeros_like(inputs.timestep).index_add(0, inputs.noisy_frame, error.detach())
        return error.sum(), inputs.frames, per_frame
