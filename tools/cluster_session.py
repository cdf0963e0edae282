"""A model in training, and its report, for cluster_check.py."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = """model.num_layers=8 model.hidden_size=128 model.ffn_hidden_size=256 model.num_attention_heads=8
model.position_table_size=16 optimizer.lr=1e-3 optimizer.warmup_steps=0"""
"""The model that layouts are compared with: heads of 16 channels, the fewest that FlexAttention takes."""


WARM_UP = 2


TIMED = 4


@dataclass
class Report:
    """Lines of Markdown, written after every part, so that what was measured survives whatever comes next."""

    path: Path
    writes: bool
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Append lines and rewrite the file."""
        self.lines += lines
        if self.writes:
            self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
            print("\n".join(lines), flush=True)


def samples_of(config: Any, channels: int, grid: tuple[int, int], step: int, count: int) -> list[Any]:
    """A global batch of random latents ``[frames, C, h, w]`` (grid: patches by rows and columns), the same on all
    ranks.
    """
    from megatron_videogpt.data.plans import Sample, split_clips
    from megatron_videogpt.objective.noise import normal

    frames, patch = config.data.frames, config.model.patch_size
    shape = (frames, channels, grid[0] * patch, grid[1] * patch)
    keys = range(step * count, (step + 1) * count)
    return [
        Sample(k, str(k), normal(k, "latents", shape), None, split_clips(random.Random(k), frames, config.data.clips))
        for k in keys
    ]


def longest_of(config: Any, patches: int) -> Any:
    """`Work` of a row of the longest of the samples that `measure_speed` trains on."""
    from megatron_videogpt.data.plans import split_clips
    from megatron_videogpt.objective.next_clip.work import clip_work

    keys = range((WARM_UP + TIMED) * config.train.global_batch_size)
    works = (clip_work(split_clips(random.Random(k), config.data.frames, config.data.clips), patches) for k in keys)
    return max(works, key=lambda work: work.tokens).times(config.train.micro_batch_size)


class Session:
    """A model in training in one layout on random latents."""

    def __init__(self, config: Any, channels: int, grid: tuple[int, int], platform: Any, spread: bool) -> None:
        from megatron.core import parallel_state

        from megatron_videogpt.model.ahead import planner
        from megatron_videogpt.model.init import load_released
        from megatron_videogpt.objective.build import build_objective
        from megatron_videogpt.platforms import world
        from megatron_videogpt.train.networks import build_chunks
        from megatron_videogpt.train.optimizer import build_optimizer, wrap
        from tools.measuring.networks import spread as spread_value

        world.start(platform, config.parallel)
        self.config, self.channels, self.grid, self.platform, self.number = config, channels, grid, platform, 0
        self.bare = build_chunks(config, channels, platform)
        if spread:
            for chunk in self.bare:
                load_released(chunk, config.model, lambda entry: spread_value(entry, config, channels))
        self.planned = planner(self.bare, platform.device)
        self.chunks = wrap(config, self.bare)
        self.optimizer, self.objective = build_optimizer(config, self.chunks), build_objective(config)
        self.rank, self.replicas = (
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        self.context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()

    def rows(self) -> list[Any]:
        """This rank's shards of the next global batch, on the device."""
        batch, micro = self.config.train.global_batch_size, self.config.train.micro_batch_size
        share = batch // self.replicas
        mine = samples_of(self.config, self.channels, self.grid, self.number, batch)[
            self.rank * share : (self.rank + 1) * share
        ]
        self.number += 1
        whole = [
            self.objective.prepare(mine[i : i + micro], self.config.parallel.row_multiple)
            for i in range(0, share, micro)
        ]
        return [self.planned(row).shard(*self.context).to(self.platform.device) for row in whole]

    def step(self, rows: list[Any]) -> tuple[float, float]:
        """One optimizer step -> (loss, gradient norm), the same on every rank."""
        from megatron_videogpt.train.optimizer import set_learning_rate
        from megatron_videogpt.train.statistics import named_means, reduce_statistics
        from megatron_videogpt.train.step import train_step

        set_learning_rate(self.optimizer, self.config.optimizer.lr)
        totals, norm, _, _ = train_step(
            self.chunks, self.optimizer, self.objective, rows, self.config.optimizer.clip_grad
        )
        return named_means(reduce_statistics(totals).numbers())["loss"], float(norm)

    def close(self) -> None:
        """Free the memory and the groups, so that the same processes can take another layout."""
        import torch

        from megatron_videogpt.platforms.world import leave_layout

        self.chunks = self.bare = self.optimizer = None  # type: ignore[assignment]
        leave_layout()
        torch.cuda.empty_cache()
