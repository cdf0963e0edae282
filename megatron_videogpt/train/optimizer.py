"""AdamW through megatron-core's distributed optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer

from ..config.schema import Config, OptimizerConfig
from ..model.videogpt import VideoGPT


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up from lr/warmup_steps, then constant or cosine to min_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps - 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def wrap(model: VideoGPT) -> DistributedDataParallel:
    """The model with its gradients in one buffer, reduced over data parallel ranks at the end of a step."""
    model.config.finalize_model_grads_func = finalize_model_grads
    settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    return DistributedDataParallel(model.config, settings, model)


def build_optimizer(config: Config, model: DistributedDataParallel) -> Any:
    """megatron-core's optimizer for one model chunk: fp32 main parameters, state sharded over data parallel ranks."""
    options, bf16 = config.optimizer, config.train.precision == "bf16"
    return get_megatron_optimizer(
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
            # 0 would also skip the norm, which is logged.
            clip_grad=options.clip_grad or float("inf"),
        ),
        [model],
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group its rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
