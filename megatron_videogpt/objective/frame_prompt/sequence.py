"""Storage order, positions and mask of a prompt and the frames that follow it.

Tokens are stored as they stand in time: ``[prefix][frame 0][frame 1]...``, a frame being its ``<|diffusion|>`` token,
its time token and its patches.  Each token sees the prefix and all tokens of its own frame and the frames before it,
among frames that are denoised as well: one interval that begins where the sequence does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...model.patches import grid_of
from ...sequence.layout import DIFFUSION, NOISY, NOISY_PATCH, PREFIX, TIME, Layout
from ...sequence.row import Row, Stream
from ..flow_rows import Sequence, assemble

PROMPT, CHUNK = 0, 1
"""Numbers of the two clips of a layout."""
CLEAN_TIMESTEP = 1.0
"""Of every frame of a prompt, whether noise was mixed into it or not."""


def prompt_layout(prompt: int, chunk: int, grid: tuple[int, int], prefix: int = 0) -> Layout:
    """The layout of one sequence of `prompt` frames that are given and `chunk` frames that are denoised, with patches
    in `grid` rows and columns, behind so many tokens of a condition, which see each other alone.

    A token's position is its place in the sequence.
    """
    patches = grid[0] * grid[1]
    block, frames = patches + 2, prompt + chunk
    length = prefix + frames * block
    before, number = torch.arange(prefix), torch.arange(frames)
    frame = number.repeat_interleave(block)
    roles = torch.tensor([DIFFUSION, TIME, *[NOISY_PATCH] * patches]).repeat(frames)
    start = prefix + frame * block
    intervals, columns = torch.zeros(2, length, 4, dtype=torch.int32)
    intervals[:, 1] = torch.cat([torch.full_like(before, prefix), start + block])
    columns[:, 0], columns[:, 1] = torch.cat([torch.zeros_like(before), start]), length
    return Layout(
        kind=torch.cat([torch.full_like(before, PREFIX), torch.full_like(frame, NOISY)]),
        role=torch.cat([torch.zeros_like(before), roles]),
        frame=torch.cat([before, frame]),
        clip=torch.cat([torch.full_like(before, -1), (frame >= prompt).long()]),
        position=torch.arange(length),
        intervals=intervals,
        columns=columns,
        sequence=torch.zeros(length, dtype=torch.int64),
    )


def placed(alone: Layout, position: int) -> Layout:
    """The layout with positions that start at `position`."""
    return replace(alone, position=alone.position + position)


def timesteps(prompt: int, chunk: int, t: float) -> Tensor:
    """float32 ``[prompt + chunk]``: clean, then t."""
    return torch.cat([torch.full((prompt,), CLEAN_TIMESTEP), torch.full((chunk,), t)])


def whole_sequence(history: Tensor, clip: Tensor, t: float, condition: Tensor | None, patch: int) -> Sequence:
    """A prompt ``[P, C, h, w]`` as it is fed, P may be 0, and a noisy clip ``[G, C, h, w]`` at timestep t."""
    prefix = 0 if condition is None else len(condition)
    return Sequence(
        layout=prompt_layout(len(history), len(clip), grid_of(clip, patch), prefix),
        noisy=torch.cat([history, clip]),
        clean=clip[:0],
        timestep=timesteps(len(history), len(clip), t),
        prefix=condition,
    )


def assemble_prompted(
    sequences: list[Sequence], patch: int, table_side: int, multiple: int, no_prefix: Tensor | None = None
) -> Row:
    """`flow_rows.assemble` of sequences whose layouts say which frames are prompts: the scored stream ``predicted``
    (frame: number among the row's frames) has the patches of the others alone, and only those frames count.
    """
    row = assemble(sequences, patch, table_side, multiple, no_prefix)
    predicted = torch.cat([item.layout.clip[item.layout.rows(NOISY, DIFFUSION)] == CHUNK for item in sequences])
    noisy = row.streams["noisy"]
    mine = predicted[noisy["frame"]]
    counted = row.counted * predicted
    return replace(
        row,
        streams=row.streams | {"predicted": Stream(noisy.rows[mine], {"frame": noisy["frame"][mine]})},
        scored="predicted",
        # Targets are absent when sampling.
        target=row.target[mine] if len(row.target) == len(mine) else row.target,
        weight=row.weight[mine],
        counted=counted,
        count=int(counted.sum()),
    )
