"""Recorded numbers of next block prediction's transformer, through the megatron-core model and the trainer's step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_videogpt.config.schema import Config, ParallelConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.recorded import Report
from megatron_videogpt.sequence.row import Row
from tools.parity.nbp_tokenizer import toy_tokenizer


def limits() -> dict[str, float]:
    """Largest error of each quantity."""
    from megatron_videogpt.objective.next_block import parity

    return parity.LIMITS


def check_transformer(folder: Path, tensor_parallel: int, attention: str, report: Report) -> None:
    """Every case of the files that `nbp.TRANSFORMER` names; UserError where a model does not split."""
    import torch

    from megatron_videogpt.attention.choice import select
    from megatron_videogpt.model.videogpt import Ends, VideoGPT
    from megatron_videogpt.objective.next_block import parity
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")

    def build(config: Config, ends: Ends) -> VideoGPT:
        heads = config.model.num_attention_heads
        if heads % tensor_parallel:
            raise UserError(
                f"--tensor-parallel {tensor_parallel} does not divide num_heads={heads} of a checkpoint in {folder}"
            )
        backend, _ = select(attention, "cpu", torch.float32, config.model.head_dim)
        return VideoGPT(config, 0, platform, backend, ends)

    parity.check_folder(folder, ParallelConfig(tensor=tensor_parallel), build, training, toy_tokenizer, report)


def training(config: Config, model: Any) -> Callable[[Any, list[Row], float], tuple[float, float]]:
    """`take(objective, rows, rate)`: one step of a network without pipeline stages -> (loss before it, gradient norm
    before clipping).
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
            # Whoever looks at the weights finds those of after the step.
            chunk.start_param_sync(force_sync=True)
        return named_means(reduce_statistics(done.totals).numbers())["loss"], float(done.norm)

    return take
