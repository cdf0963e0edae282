"""Trains frame as prompt as `next_block_worker.py` trains next block prediction, and samples with what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker
from tests.parallel.next_block_worker import BLANKS, main

CHANNELS = 4
FRAMES = (5, 3)
"""Of the samples in turn: every row has prompts of several lengths."""


def sample_of(step: int, number: int, classes: int) -> Any:
    """Noise as latents, new in every step; of classes, some are dropped."""
    import torch

    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal

    key = 1000 * step + number
    latents = normal(key, "sample", (FRAMES[number % 2], CHANNELS, 4, 6))
    scored = (step, number) not in BLANKS
    condition = torch.tensor([number % classes]) if classes and scored else None
    latents = latents if scored else torch.zeros_like(latents)
    return Sample(key, "", latents, None, (len(latents),), scored=scored, condition=condition, dropped=number % 3 == 2)


def sampled(session: worker.Session) -> dict[str, Any]:
    """Two videos over a window that moves, under both policies of its end: of each frame its norm and a value."""
    from dataclasses import replace

    import torch

    from megatron_videogpt.objective.build import build_sampler
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.train.optimizer import whole_parameters

    config, found = session.config, {}
    histories = [normal(number, "history", (1 + number, CHANNELS, 4, 6)) for number in range(2)]
    shown = [torch.tensor([1]), None] if config.condition.classes else None
    bare = [chunk.module for chunk in session.chunks]
    with whole_parameters(session.chunks):
        for end in ("recompute", "keep"):
            settings = replace(config.sample, window_end=end)
            sampler = build_sampler(bare, replace(config, sample=settings), torch.device("cpu"))
            clips = [torch.cat(parts) for parts in zip(*sampler.rollout(histories, settings, [0, 1], 0, shown))]
            found[end] = [float(value) for clip in clips for frame in clip for value in (frame.norm(), frame[1, 2, 3])]
    return {"sampled": found}


if __name__ == "__main__":
    main(sample_of, CHANNELS, sampled)
