"""What differs between releases of megatron-core, or goes wrong in one, and nowhere else: tested with 0.16.1 (DESIGN section 6)."""

from __future__ import annotations

from typing import Any

import torch

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""The checkpoint format of the distributed optimizer that any layout can load; `dp_reshardable` came back with step 0 without Transformer Engine."""


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
