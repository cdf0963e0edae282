"""Checkpoints into a model and an optimizer, with megatron-core's `dist_checkpointing`: any layout saves, any layout
loads.

megatron-core's metadata is pickled: load only checkpoints you trust; Hugging Face folders are for exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from megatron.core import dist_checkpointing
from torch import nn

from ..errors import RunError
from ..platforms import compat
from ..platforms.together import first_error, from_rank_zero
from ..platforms.world import is_rank_zero
from .average import Average, average_template, use_average
from .failures import FAILURES, root_cause
from .folders import RECORD
from .parts import SavedPart, check_same_parts, fill, part_contents, restore_parts, sharded_weights
from .saved import Saved
from .whole import unreadable

T = TypeVar("T")


def readable(path: Path, action: Callable[[], T], group: Any = None) -> T:
    """What reading a checkpoint gives; a collective of all ranks.  Raises RunError, on every rank, where it fails on
    any: bytes may be wrong that no record tells of.
    """
    found: list[T] = []
    problem: BaseException | None = None
    try:
        found.append(action())
    except FAILURES as error:  # (reported on every rank)
        problem = error
    told = first_error(root_cause(problem)[:160] if problem else "", group, "reading a checkpoint")
    if told:
        raise RunError(from_rank_zero(lambda: unreadable(path, told), group, "reading a checkpoint")) from problem
    return found[0]


def _read(contents: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fill the tensors that `contents` describes; a collective, as `readable`."""

    def alone() -> None:
        dist_checkpointing.load_common_state_dict(str(path))
        if is_rank_zero() and not (path / RECORD).exists():
            # torch would log a traceback of its own.
            dist_checkpointing.load_tensors_metadata(str(path))

    # Each rank reads this by itself, before megatron-core's first collective: who fails would be missing there.
    readable(path, alone)
    return readable(path, lambda: dist_checkpointing.load(contents, str(path)))


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
        loaded = _read({"model": wanted}, path)["model"]
        for chunk, values in zip(chunks, loaded.values()):
            fill(chunk, values, fresh)
        return
    use_average(chunks, _read({"ema": average_template(chunks, weights)}, path)["ema"])


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
    loaded = _read(sharded, saved.path)
    for chunk, values in zip(chunks, loaded["model"].values()):
        fill(chunk, values)
    compat.load_optimizer(optimizer, loaded["optimizer"], state["updates"])
    if parts:
        restore_parts(parts, loaded["parts"], {name: other["updates"] for name, other in state["others"].items()})
    if average is not None:
        average.restore(loaded["ema"]) if state["ema"] else average.restart()
    return state
