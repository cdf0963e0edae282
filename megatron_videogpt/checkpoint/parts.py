"""What a checkpoint holds of an objective's further networks (`objective.base.Part`), beside its first one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from torch import nn

from ..errors import RunError, UserError
from ..platforms import compat

STATE = "_extra_state"
"""What modules keep beside weights for 8-bit formats, under this name."""


def sharded_weights(chunks: Sequence[Any]) -> dict[str, Any]:
    """megatron-core's description of this rank's weights, one entry per model chunk (without its wrapping): the same
    with Transformer Engine's layers and without, so that either loads what the other saved.
    """
    return {f"chunk{number}": _without_states(chunk.sharded_state_dict()) for number, chunk in enumerate(chunks)}


def _without_states(entries: dict[str, Any]) -> dict[str, Any]:
    """Without the states of 8-bit formats that norms have in Transformer Engine only; they are empty."""
    return {name: entry for name, entry in entries.items() if not name.endswith(f"norm.{STATE}")}


def fill(chunk: nn.Module, values: dict[str, Any], fresh: str = "") -> None:
    """Take a loaded entry of `sharded_weights` into its chunk; parameters whose names start with `fresh`, if that is
    anything, may be missing.
    """
    found = chunk.load_state_dict(values, strict=False)
    wrong = [key for key in found.missing_keys if not key.endswith(STATE) and not (fresh and key.startswith(fresh))]
    assert not wrong and not found.unexpected_keys, (wrong, found.unexpected_keys)


def check_split(chunks: Sequence[Any]) -> None:
    """Raise UserError for a parameter that tensor parallelism splits and that megatron-core would save as a whole one,
    as it does inside modules that are none of its own: one rank's part would stand for all of it.
    """
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    for chunk, entries in zip(chunks, sharded_weights(chunks).values()):
        for name, parameter in chunk.named_parameters():
            entry = entries.get(name)
            # Any other entry is a factory, which somebody wrote because the parameter is split.
            if not isinstance(entry, ShardedTensor) or not getattr(parameter, "tensor_model_parallel", False):
                continue
            if entry.axis_fragmentations[entry.prepend_axis_num + parameter.partition_dim] == 1:
                raise UserError(
                    f"{type(chunk).__name__}: {name} is split over parallel.tensor, but a checkpoint would hold one "
                    "rank's part for all of it; derive the modules around it from megatron-core's MegatronModule"
                )


@dataclass(frozen=True)
class SavedPart:
    """chunks: this rank's, without their wrapping; optimizer: None where only the weights are kept (an average)."""

    name: str
    chunks: Sequence[nn.Module]
    optimizer: Any


def part_contents(parts: Sequence[SavedPart], loading: bool = False) -> dict[str, Any]:
    """Entries of a checkpoint; a collective.  Keys have the part's name before them."""
    contents: dict[str, Any] = {}
    for part in parts:
        weights = sharded_weights(part.chunks)
        entry: dict[str, Any] = {"model": weights}
        if part.optimizer is not None:
            # The template needs moments to describe, and a fresh torch Adam has none.
            if loading:
                compat.seed_optimizer_state(part.optimizer)
            with contextlib.nullcontext() if loading else compat.packed_buckets(part.optimizer):
                entry["optimizer"] = part.optimizer.sharded_state_dict(
                    weights, is_loading=loading, metadata=compat.OPTIMIZER_FORMAT
                )
        add_prefix_for_sharding(entry, f"parts.{part.name}.")
        contents[part.name] = entry
    return contents


def restore_parts(parts: Sequence[SavedPart], loaded: dict[str, Any], updates: dict[str, int]) -> None:
    """Fill them from loaded entries.  updates: optimizer steps that each has taken."""
    for part in parts:
        entry = loaded[part.name]
        for chunk, values in zip(part.chunks, entry["model"].values()):
            fill(chunk, values)
        if part.optimizer is not None:
            compat.load_optimizer(part.optimizer, entry["optimizer"], updates[part.name])


def check_same_parts(saved: str, names: Sequence[str], parts: Sequence[SavedPart]) -> None:
    """Raise RunError where a checkpoint has other networks than the run."""
    wanted = [part.name for part in parts]
    if sorted(names) != sorted(wanted):
        raise RunError(
            f"{saved}: has the further networks {sorted(names)}, this run's objective has {sorted(wanted)}; start a "
            "new run with another train.output"
        )
