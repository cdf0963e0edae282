"""The tokenizer that a run has trained as a folder that stands alone, and that codec.name="fsq" takes."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from ..checkpoint.load import readable
from ..checkpoint.saved import Saved, find_checkpoint
from ..errors import UserError
from ..hub.common.fsq_tokenizer import FSQShape, write_folder
from .tokenizer import filled_by

OBJECTIVE = "tokenizer"
TRAINED, AVERAGE = "trained", "average"
KEYS = {TRAINED: "net.", AVERAGE: "parts.average.net."}
"""Beginnings of the tokenizer's keys in a checkpoint of that objective."""


def run_to_folder(run: Path, output: Path, step: int | None = None, weights: str | None = None) -> tuple[FSQShape, str]:
    """Write the tokenizer of a run's checkpoint as a folder; its shape, and which step and weights it is of.

    One process, in the process groups of `platforms.world`.  Only the tokenizer's tensors are read.

    Args:
        step: of the checkpoint; None for the newest.
        weights: `TRAINED` or `AVERAGE`; None for the average where the run keeps one.

    Raises:
        UserError, RunError: one line: no run of that objective, no such checkpoint, no average.
    """
    saved = find_checkpoint(run, step)
    options = saved.config.objective
    if options.name != OBJECTIVE:
        raise UserError(f"{run}: a run of objective.name={options.name}; expected one of {OBJECTIVE}")
    averaged = AVERAGE in saved.state.get("parts", ())
    chosen = weights or (AVERAGE if averaged else TRAINED)
    if chosen == AVERAGE and not averaged:
        raise UserError(f"{run}: keeps no average (objective.decay = 0); use --weights {TRAINED}")
    shape = FSQShape(options.width, options.groups, options.units, options.levels)
    state = {key: value.float().contiguous() for key, value in _tensors(saved, KEYS[chosen]).items()}
    # It is what this run says it is, or nothing is written.
    filled_by(shape, state, saved.path)
    write_folder(output, shape, state)
    return shape, f"{chosen} weights of step {saved.state['step']}"


def _tensors(saved: Saved, prefix: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint whose keys begin so, without the beginning."""
    path = str(saved.path)
    held = readable(saved.path, lambda: dist_checkpointing.load_tensors_metadata(path))
    contents = {
        key.removeprefix(prefix): ShardedTensor.from_rank_offsets(
            key, torch.empty(described.global_shape, dtype=described.dtype)
        )
        for key, described in held.items()
        if key.startswith(prefix)
    }
    found: dict[str, Tensor] = readable(
        saved.path, lambda: dist_checkpointing.load(contents, path, validate_access_integrity=False)
    )
    return {key: found[key] for key in contents}
