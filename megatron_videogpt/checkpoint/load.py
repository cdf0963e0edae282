"""Checkpoints into a model and an optimizer, with megatron-core's `dist_checkpointing`: any layout saves, any layout
loads.

megatron-core's metadata is pickled: load only checkpoints you trust; Hugging Face folders are for exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch import nn

from ..platforms import compat
from .average import Average, average_template, use_average
from .parts import SavedPart, check_same_parts, part_contents, restore_parts, sharded_weights
from .saved import Saved


def load_weights(path: Path, chunks: Sequence[nn.Module], average: bool = False, fresh: str = "") -> None:
    """Fill a model (any layout) with a checkpoint's weights, or with their moving average, which it must have.

    fresh: start of the names of parameters that the checkpoint does not have, which keep the values they have; "" for
    none.
    """
    weights = sharded_weights(chunks)
    if not average:
        wanted = {
            name: {key: value for key, value in entries.items() if not fresh or not key.startswith(fresh)}
            for name, entries in weights.items()
        }
        loaded = dist_checkpointing.load({"model": wanted}, str(path))["model"]
        for chunk, values in zip(chunks, loaded.values()):
            missing = chunk.load_state_dict(values, strict=not fresh).missing_keys
            assert all(key.startswith(fresh) for key in missing)
        return
    use_average(chunks, dist_checkpointing.load({"ema": average_template(chunks, weights)}, str(path))["ema"])


def load_checkpoint(
    saved: Saved,
    chunks: Sequence[nn.Module],
    optimizer: Any,
    average: Average | None,
    parts: Sequence[SavedPart] = (),
) -> dict[str, Any]:
    """Restore a run from a checkpoint of any layout; returns its state.  parts: the objective's further networks.

    Where the checkpoint has no average of the weights but the run keeps one, it starts from the loaded weights.
    """
    state = saved.state
    check_same_parts(str(saved.path), state.get("parts", ()), parts)
    # The template needs moments to describe, and a fresh torch Adam has none.
    compat.seed_optimizer_state(optimizer)
    weights = sharded_weights(chunks)
    sharded = {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=True, metadata=compat.OPTIMIZER_FORMAT),
    }
    if average is not None and state["ema"]:
        sharded["ema"] = average_template(chunks, weights)
    if parts:
        sharded["parts"] = part_contents(parts, loading=True)
    loaded = dist_checkpointing.load(sharded, str(saved.path))
    for chunk, values in zip(chunks, loaded["model"].values()):
        chunk.load_state_dict(values)
    compat.load_optimizer(optimizer, loaded["optimizer"], state["updates"])
    if parts:
        restore_parts(parts, loaded["parts"], {name: other["updates"] for name, other in state["others"].items()})
    if average is not None:
        average.restore(loaded["ema"]) if state["ema"] else average.restart()
    return state
