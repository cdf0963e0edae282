"""Optimizer steps for comparisons with recorded ones: the trainer's own step, without a run around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_videogpt.config.schema import Config
from megatron_videogpt.sequence.row import Row


def training(config: Config, model: Any) -> Callable[[Any, list[Row], float], tuple[float, float]]:
    """`take(objective, rows, rate)`: one step of a network without pipeline stages, weights in place -> (loss before
    it, gradient norm before clipping).
    """
    from megatron_videogpt.train.optimizer import build_optimizer, set_learning_rate, wrap
    from megatron_videogpt.train.statistics import named_means, reduce_statistics
    from megatron_videogpt.train.step import train_step

    chunks = wrap(config, [model])
    optimizer = build_optimizer(config, chunks)

    def take(objective: Any, rows: list[Row], rate: float) -> tuple[float, float]:
        set_learning_rate(optimizer, rate)
        done = train_step(chunks, optimizer, objective, rows, config.optimizer.clip_grad)
        for chunk in chunks:
            chunk.start_param_sync(force_sync=True)
        return named_means(reduce_statistics(done.totals).numbers())["loss"], float(done.norm)

    return take
