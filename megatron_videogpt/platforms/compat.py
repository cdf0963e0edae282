"""What differs between releases of megatron-core, or goes wrong in one, and nowhere else: tested with 0.16.1 (DESIGN section 6)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""The checkpoint format of the distributed optimizer that any layout can load; `dp_reshardable` came back with step 0 without Transformer Engine."""


def let_outputs_be_dropped() -> None:
    """Make `CheckpointWithoutOutput` work without Transformer Engine: it takes its own default, False, for "fp8 is on" and then looks for that package."""
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    CheckpointWithoutOutput.__init__.__defaults__ = (None,)  # type: ignore[attr-defined]


def _parts(optimizer: Any) -> list[Any]:
    """The distributed optimizers inside megatron-core's chain."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def seed_optimizer_state(optimizer: Any) -> None:
    """Give torch's Adam empty moments: the loading template is made from them, and a fresh one has none."""
    for part in _parts(optimizer):
        inner = part.optimizer
        if not isinstance(inner, torch.optim.Adam):
            continue
        for parameter in (p for group in inner.param_groups for p in group["params"] if not inner.state[p]):
            inner.state[parameter].update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter), step=torch.tensor(0.0))


def load_optimizer(optimizer: Any, loaded: dict[str, Any], updates: int) -> None:
    """Restore the optimizer after `updates` steps from what `dist_checkpointing.load` returned for it.

    Works around two faults with torch's Adam: megatron-core's loader asks the saved tensors for `step`, and it shares one step tensor among all
    parameters, which Adam would then count up once per parameter.
    """
    (part,) = _parts(optimizer)
    tensors, kind = loaded.pop("param_state"), loaded.pop("param_state_sharding_type")
    assert kind == OPTIMIZER_FORMAT["distrib_optim_sharding_type"]
    part.load_state_dict(loaded)
    counted = [values for values in part.optimizer.state.values() if values.pop("step", None) is not None]
    part.load_parameter_state_from_fully_reshardable(tensors)
    for values in counted:
        values["step"] = torch.tensor(float(updates))


@contextlib.contextmanager
def packed_buckets(optimizer: Any) -> Iterator[None]:
    """Inside, `sharded_state_dict` saves what belongs to each parameter, with more than one bucket too.

    It drops the padding between buckets from the state it gathers, and then cuts that state at offsets that still count the padding: behind the first
    bucket whose size data parallelism does not divide, every moment and main parameter was saved shifted, without an error.
    """
    buffers = [buffer for part in _parts(optimizer) for buffer in part.buffers]
    padded = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        starts = itertools.accumulate((bucket.numel_unpadded for bucket in buffer.buckets), initial=0)
        surplus = [bucket.offset - start for bucket, start in zip(buffer.buckets, starts)]
        buffer.param_index_map = {
            parameter: (start - surplus[bucket], end - surplus[bucket], bucket) for parameter, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, offsets in zip(buffers, padded):
            buffer.param_index_map = offsets


def main_shards(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor, int, int]]:
    """(model parameter, this rank's float32 shard of it in the optimizer, start and end of that shard in the flattened parameter).

    Parameters of which this rank holds nothing are left out; megatron-core has no public way to ask.
    """
    for part in _parts(optimizer):
        for parameter, (group, order) in part.model_param_group_index_map.items():
            reach = part._get_model_param_range_map(parameter)["param"]
            yield parameter, part.optimizer.param_groups[group]["params"][order], reach.start, reach.end
