"""What the host would wait for, and what is float64, in a step of each layout, on any rank: `no_sync_worker.py
LAYOUTS.json OUTPUT.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.waits import Doubles, waits

CHANNELS, ROWS = 4, 2


def step(values: dict[str, Any], lengths: list[int], platform: Any) -> list[str]:
    """What the second step of two waits for, or computes and sends in float64.  lengths: rows of this many frames each,
    one a micro-batch.
    """
    from megatron.core import parallel_state

    from megatron_videogpt.checkpoint.average import Average
    from megatron_videogpt.config.load import config_from_dict
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks
    from megatron_videogpt.train.optimizer import build_optimizer, wrap
    from megatron_videogpt.train.step import train_step

    config = config_from_dict(values)
    world.start(platform, config.parallel)
    bare = build_chunks(config, CHANNELS, platform)
    objective, chunks = build_objective(config), wrap(config, bare)
    optimizer = build_optimizer(config, chunks)
    average = Average(bare, optimizer, 0.9)
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    samples = [
        Sample(key=n, name=str(n), mean=normal(n, "latents", (n, CHANNELS, 8, 8)), logvar=None, clips=(1, n - 1))
        for n in lengths
    ]
    rows = [objective.prepare([sample], config.parallel.row_multiple).shard(*context) for sample in samples]
    train_step(chunks, optimizer, objective, rows)
    with Doubles() as doubles, waits() as found:
        average.update(train_step(chunks, optimizer, objective, rows).taken)
    world.leave_layout()
    everyone: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, sorted({*found, *doubles.found}))
    return [place for one in everyone for place in one]


def main() -> None:
    """Entry point under torchrun."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    torch.set_num_threads(1)
    answers = [step(values, lengths, platform) for values, lengths in json.loads(Path(sys.argv[1]).read_text())]
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
