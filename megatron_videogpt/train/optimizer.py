"""AdamW through megatron-core's distributed optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate

from ..config.schema import Config
from ..model.init import named
from ..model.parameters import Table
from ..model.videogpt import VideoGPT
from ..platforms import compat


def wrap(config: Config, chunks: list[VideoGPT]) -> list[DistributedDataParallel]:
    """The model chunks of this rank with their gradients in buffers that are reduced over data (and context) parallel
    ranks.
    """
    layout = config.parallel
    compat.let_buffers_lay_themselves_out()
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather,
        bucket_size=layout.bucket_size or None,
    )
    # Communication of later chunks is hidden behind the other chunks' work, so that they need no buckets.
    wrapped = [
        DistributedDataParallel(chunk.config, settings, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = compat.finalize_gradients
        # A way around a fault of old releases of PyTorch: the host would wait for the device at every message between
        # pipeline stages.
        chunk.config.batch_p2p_sync = False
    if layout.overlap_grad_reduce:
        # megatron-core's schedules read the first chunk's configuration.
        hooks = [chunk.no_sync for chunk in wrapped]
        chunks[0].config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]
    return wrapped


@contextlib.contextmanager
def whole_parameters(chunks: list[DistributedDataParallel]) -> Iterator[None]:
    """Every parameter up to date inside, whatever is still being gathered: for validation, sampling and checkpoints.

    Inside another one it does nothing.
    """
    overlapped = [
        chunk for chunk in chunks if chunk.ddp_config.overlap_param_gather and chunk.remove_forward_pre_hook_handles
    ]
    for chunk in overlapped:
        chunk.disable_forward_pre_hook()
    try:
        yield
    finally:
        for chunk in overlapped:
            chunk.enable_forward_pre_hook()


def build_optimizer(config: Config, chunks: list[DistributedDataParallel]) -> Any:
    """megatron-core's optimizer for the model chunks of this rank: fp32 main parameters, state sharded over data (and
    context) parallel ranks.

    Its groups are by shape and name and so the same in every layout: ``wd_mult`` is 1 for what has two dimensions or
    more (weights of linear layers and patch projections, the hint tokens' embedding), 0 for what has one (norms'
    weights and all biases), unless the network's table of parameters says otherwise (`Rule.decay`, `Rule.rate`).
    """
    options, bf16 = config.optimizer, config.train.precision == "bf16"
    overrides = _overrides(config, [chunk.module for chunk in chunks])
    compat.use_torch_adam()
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=options.lr,
            min_lr=options.min_lr,
            weight_decay=options.weight_decay,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            adam_eps=options.eps,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=True,
            overlap_param_gather=config.parallel.overlap_param_gather,
            clip_grad=options.clip_grad,
        ),
        chunks,
        config_overrides=overrides,
    )
    for group in optimizer.param_groups:
        # megatron-core leaves wd_mult to a scheduler of Megatron-LM's, which is not used here.
        decay = group["wd_mult"] if overrides is not None or options.decay == "matrices" else 1.0
        group["weight_decay"] = options.weight_decay * decay
    compat.fuse(optimizer)
    return optimizer


def _overrides(config: Config, chunks: list[VideoGPT]) -> dict[Any, Any] | None:
    """Multipliers of every parameter, where a rule of the network's table has one; None where megatron-core's own
    groups will do.
    """
    # A network that is none of ours may have no table.
    rules = [rule for chunk in chunks for rule in getattr(chunk, "table", Table(())).of(config.model)]
    if all(rule.decay is None and rule.rate == 1.0 for rule in rules):
        return None
    members: dict[tuple[float, float], set[int]] = {}
    for chunk in chunks:
        for entry, parameter in named(chunk, config.model):
            decay, matrix = entry.rule.decay, parameter.dim() > 1 and not entry.name.endswith(".bias")
            if decay is None:
                decay = float(matrix or config.optimizer.decay == "all")
            members.setdefault((decay, entry.rule.rate), set()).add(id(parameter))
    return {
        ParamKey(predicate=ParamPredicate(f"{decay} {rate}", lambda parameter, held=held: id(parameter) in held)): {
            "wd_mult": decay,
            "lr_mult": rate,
        }
        for (decay, rate), held in sorted(members.items())
    }


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group its rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
