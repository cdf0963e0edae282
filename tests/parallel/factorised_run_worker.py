"""Trains the factorised network of frame as prompt as `next_block_worker.py` trains next block prediction, and samples
with what came out.
"""

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


def words_of(number: int) -> Any:
    """Features of a text, of one to three tokens."""
    from megatron_videogpt.condition.folder import WORDS_WIDTH
    from megatron_videogpt.objective.noise import normal

    return normal(number, "words", (1 + number % 3, WORDS_WIDTH))


def sample_of(step: int, number: int, classes: int) -> Any:
    """Noise as latents, new in every step; a third of the texts is dropped."""
    import torch

    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal

    key = 1000 * step + number
    latents = normal(key, "sample", (FRAMES[number % 2], CHANNELS, 4, 6))
    scored = (step, number) not in BLANKS
    latents = latents if scored else torch.zeros(1, CHANNELS, 2, 2)
    condition = words_of(number) if scored else None
    return Sample(key, "", latents, None, (len(latents),), scored=scored, condition=condition, dropped=number % 3 == 2)


def sampled(session: worker.Session) -> dict[str, Any]:
    """Three videos, one without a text and one of another history, over a window that moves, as published and without a
    cache: of each frame its norm and a value.
    """
    from dataclasses import replace

    import torch

    from megatron_videogpt.objective.build import build_sampler
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.train.optimizer import whole_parameters

    config = session.config
    histories = [normal(number, "history", (1 + number // 2, CHANNELS, 4, 6)) for number in range(3)]
    shown = [words_of(1), None, words_of(2)]
    bare = [chunk.module for chunk in session.chunks]
    found = {}
    for cache, end in ((True, "keep"), (False, "recompute")):
        sample = replace(config.sample, cache=cache, window_end=end)
        with whole_parameters(session.chunks):
            sampler = build_sampler(bare, replace(config, sample=sample), torch.device("cpu"))
            clips = [torch.cat(parts) for parts in zip(*sampler.rollout(histories, sample, [0, 1, 2], 0, shown))]
        found[end] = [float(value) for clip in clips for frame in clip for value in (frame.norm(), frame[1, 2, 3])]
    return found


if __name__ == "__main__":
    main(sample_of, CHANNELS, sampled)
