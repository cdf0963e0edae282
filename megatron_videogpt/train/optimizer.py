"""AdamW through megatron-core's distributed optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer

from ..config.schema import Config, OptimizerConfig
from ..model.videogpt import VideoGPT
from ..platforms import compat


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up from lr/warmup_steps, then constant or cosine to
    min_lr.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps - 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
    """Every parameter up to date inside, whatever is still being gathered: for validation, sampling and checkpoints."""
    overlapped = [chunk for chunk in chunks if chunk.ddp_config.overlap_param_gather]
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

    Its groups are megatron-core's own, by shape and name and so the same in every layout: ``wd_mult`` is 1 for what has
    two dimensions or more (weights of linear layers and patch projections, the hint tokens' embedding), 0 for what has
    one (norms' weights and all biases).
    """
    options, bf16 = config.optimizer, config.train.precision == "bf16"
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
    )
    for group in optimizer.param_groups:
        # megatron-core leaves wd_mult to a scheduler of Megatron-LM's, which is not used here.
        group["weight_decay"] = options.weight_decay * (group["wd_mult"] if options.decay == "matrices" else 1.0)
    compat.fuse(optimizer)
    return optimizer


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group its rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
