"""Runs a few optimizer steps in each of several layouts and writes losses and gradient norms: `layouts_worker.py LAYOUTS.json OUTPUT.json`.

Weights start spread and non-zero (a zero head would give the backbone no gradient in the first step); samples are random latents, clip splits that
differ in length, a single-clip sample among them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

STEPS, BATCH = 5, 4
SPLITS = [(2, 1, 1), (1, 1, 1, 1), (4,), (1, 3)]


def run_layout(options: dict, platform):  # type: ignore[no-untyped-def]
    """Loss and gradient norm of every step in one layout."""
    from megatron.core import parallel_state

    from megatron_videogpt.config.schema import Config, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
    from megatron_videogpt.data.clips import Sample
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.train import distributed
    from megatron_videogpt.train.optimizer import build_optimizer, set_learning_rate, wrap
    from megatron_videogpt.train.step import describe, reduce_statistics, train_step
    from tests import dense

    tiny = dense.Tiny(layers=2, groups=2)
    micro = options.pop("micro", 1)
    precision = options.pop("precision", "fp32")
    config = Config(
        model=ModelConfig(num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2, position_table_size=tiny.table),
        parallel=ParallelConfig(**options),
        train=TrainConfig(precision=precision, global_batch_size=BATCH, micro_batch_size=micro),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=1),
    )
    distributed.start(platform, config.parallel)
    weights = dense.random_weights(tiny, seed=3)
    chunks = [VideoGPT(config, tiny.channels, platform, "ranged", chunk) for chunk in range(config.parallel.virtual_pipeline)]
    for chunk in chunks:
        load_released(chunk, config.model, lambda entry: weights[entry.hf])
    model = wrap(config, chunks)
    optimizer, objective = build_optimizer(config, model), build_objective(config)
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    rank, replicas = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    share = BATCH // replicas
    result = []
    for step in range(STEPS):
        samples = []
        for n in range(BATCH):
            key = step * BATCH + n
            samples.append(Sample(key=key, name=str(key), mean=normal(key, "latents", (4, 4, 4, 4)), logvar=None, clips=SPLITS[key % len(SPLITS)]))
        mine = samples[rank * share : (rank + 1) * share]
        rows = [objective.prepare(mine[i : i + micro], config.parallel.row_multiple).shard(*context) for i in range(0, share, micro)]
        set_learning_rate(optimizer, 3e-3)
        totals, norm, _ = train_step(model, optimizer, objective, rows)
        result.append((describe(reduce_statistics(totals))["loss"], norm))
    parallel_state.destroy_model_parallel()
    return result


def main() -> None:
    """Entry point under torchrun."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    torch.set_num_threads(1)
    layouts = json.loads(Path(sys.argv[1]).read_text())
    results = {name: run_layout(dict(options), platform) for name, options in layouts.items()}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
