"""What differs between releases of megatron-core, or goes wrong in one, tested with 0.16.1 to 0.19.2; `compat_saving`
has the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""The checkpoint format of the distributed optimizer that any layout can load; `dp_reshardable` came back with step 0
without Transformer Engine.
"""


FUSED = ("cpu", "cuda")
"""Device types whose fused AdamW is known to obey `found_inf` and `grad_scale` in the kernel."""


def allow_dropping_outputs() -> None:
    """Make `CheckpointWithoutOutput` work without Transformer Engine: it takes its own default, False, for "fp8 is on"
    and then looks for that package.
    """
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    CheckpointWithoutOutput.__init__.__defaults__ = (None,)  # type: ignore[attr-defined]


def _of_interest(record: logging.LogRecord) -> bool:
    return "full_param_layout not provided" not in record.getMessage()


def let_buffers_lay_themselves_out() -> None:
    """Silence what 0.19 says at every start about the layout of gradient buffers, which it computes itself: nothing
    that a user could change.
    """
    logging.getLogger("megatron.core.distributed.distributed_data_parallel").addFilter(_of_interest)


def _parts(optimizer: Any) -> list[Any]:
    """The distributed optimizers inside megatron-core's chain."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def use_torch_adam() -> None:
    """Make megatron-core build, save and load torch's AdamW, although Transformer Engine or Apex, where installed,
    would bring theirs.

    One optimizer everywhere: the same numbers, one format of its step count, and a step that the device itself can skip
    (`take_step`).
    """
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.USING_PYTORCH_OPTIMIZER = True
    distrib_optimizer.HAVE_APEX_OR_TE = False


def _inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    return [part.optimizer for part in _parts(optimizer)]


def fuse(optimizer: Any) -> None:
    """Run AdamW as one kernel per device where that kernel can skip a step (`FUSED`)."""
    for group in (group for inner in _inner(optimizer) for group in inner.param_groups):
        group["fused"] = all(parameter.device.type in FUSED for parameter in group["params"])


def gradients(part: Any) -> list[Tensor]:
    """The gradients of this rank whose norm counts, from one of the distributed optimizers in a chain: each parameter
    on one rank only.
    """
    # Its name until 0.18, and from 0.19 on.
    ask = getattr(part, "get_main_grads_for_grad_norm", None) or part.get_grads_for_grad_norm
    return ask()


def take_step(optimizer: Any, taken: Tensor, scale: Tensor) -> None:
    """Divide the gradients by `scale` and update, if `taken`; else leave weights, moments and step count as they are.

    taken: bool; scale: float; both 0-dimensional, on the device, which decides by itself.  Where its AdamW cannot
    (`FUSED`), the host waits for `taken`.
    """
    if all(group["fused"] for inner in _inner(optimizer) for group in inner.param_groups):
        for inner in _inner(optimizer):
            # torch's own protocol between its loss scaler and fused optimizers.
            inner.found_inf, inner.grad_scale = 1.0 - taken.float(), scale.float()  # type: ignore[attr-defined]
    elif not bool(taken):
        return
    else:
        torch._foreach_div_(
            [p.grad for inner in _inner(optimizer) for group in inner.param_groups for p in group["params"]],
            scale.float(),
        )
    optimizer.step_with_ready_grads()


def _step_count(parameter: Tensor, updates: int) -> Tensor:
    """Adam's count of steps, where the fused kernel looks for it; it may be elsewhere for the others."""
    return torch.full(
        (), float(updates), dtype=torch.float32, device=parameter.device if parameter.device.type in FUSED else "cpu"
    )


def seed_optimizer_state(optimizer: Any) -> None:
    """Give torch's Adam empty moments: the loading template is made from them, and a fresh one has none."""
    for inner in _inner(optimizer):
        for parameter in (p for group in inner.param_groups for p in group["params"] if not inner.state[p]):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            inner.state[parameter].update(moments, step=_step_count(parameter, 0))


def load_optimizer(optimizer: Any, loaded: dict[str, Any], updates: int) -> None:
    """Restore moments and main parameters after `updates` steps from what `dist_checkpointing.load` returned; the
    groups keep this run's options.

    Works around two faults with torch's Adam: megatron-core's loader asks the saved tensors for `step`, and it shares
    one step tensor among all parameters, which Adam would then count up once per parameter.
    """
    (part,) = _parts(optimizer)
    tensors, kind = loaded.pop("param_state"), loaded.pop("param_state_sharding_type")
    assert kind == OPTIMIZER_FORMAT["distrib_optim_sharding_type"]
    # Saved groups would bring the weight decay, betas and eps of the run before; and megatron-core 0.19 finds none
    # whose learning rate has changed.
    loaded["optimizer"]["param_groups"] = [
        {name: value for name, value in group.items() if name != "params"} | {"step": float(updates)}
        for group in part.optimizer.param_groups
    ]
    part.load_state_dict(loaded)
    for values in part.optimizer.state.values():
        del values["step"]
    part.load_parameter_state_from_fully_reshardable(tensors)
    for parameter, values in part.optimizer.state.items():
        values["step"] = _step_count(parameter, updates)


def finalize_gradients(
    model: list[Any], num_tokens: Tensor | None = None, pg_collection: Any = None, force_all_reduce: bool = False
) -> None:
    """megatron-core's `finalize_model_grads`, but for its `if num_tokens > 0`, which makes the host wait for forward
    and backward pass.

    num_tokens: int32, what this rank's losses count; gradients are divided by the sum over ranks, if that is not 0.
    """
    from megatron.core import parallel_state
    from megatron.core.distributed.finalize_model_grads import finalize_model_grads

    finalize_model_grads(model, None, pg_collection, force_all_reduce)
    if num_tokens is None:
        return
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(num_tokens, last, group=parallel_state.get_pipeline_model_parallel_group())
    torch.distributed.all_reduce(num_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    share = 1.0 / num_tokens.clamp(min=1)
    for chunk in model:
        chunk.scale_gradients(share)


def expect_lengths(chunks: list[Any], lengths: set[int]) -> None:
    """Tell megatron-core whether the rows of this step differ in length.

    Where they do, its pipeline stages tell each other the shape of every tensor, and the host waits for each of these
    messages.
    """
    from megatron.core import parallel_state
    from megatron.core.utils import get_model_config

    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        for chunk in chunks:
            get_model_config(chunk).variable_seq_lengths = len(lengths) > 1


@contextlib.contextmanager
def packed_buckets(optimizer: Any) -> Iterator[None]:
    """Inside, `sharded_state_dict` saves what belongs to each parameter, with more than one bucket too.

    It drops the padding between buckets from the state it gathers, and then cuts that state at offsets that still count
    the padding: behind the first bucket whose size data parallelism does not divide, every moment and main parameter
    was saved shifted, without an error.
    """
    buffers = [buffer for part in _parts(optimizer) for buffer in part.buffers]
    padded = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        starts = itertools.accumulate((bucket.numel_unpadded for bucket in buffer.buckets), initial=0)
        surplus = [bucket.offset - start for bucket, start in zip(buffer.buckets, starts)]
        buffer.param_index_map = {
            parameter: (start - surplus[bucket], end - surplus[bucket], bucket)
            for parameter, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, offsets in zip(buffers, padded):
            buffer.param_index_map = offsets


def main_shards(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor, int, int]]:
    """(model parameter, this rank's float32 shard of it in the optimizer, start and end of that shard in the flattened
    parameter).

    Parameters of which this rank holds nothing are left out; megatron-core has no public way to ask.
    """
    for part in _parts(optimizer):
        for parameter, (group, order) in part.model_param_group_index_map.items():
            reach = part._get_model_param_range_map(parameter)["param"]
            yield parameter, part.optimizer.param_groups[group]["params"][order], reach.start, reach.end
