"""Random packed rows as training and sampling make them, the same for every backend and every test."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch

from megatron_videogpt.sequence.layout import Clip, ClipShape, history_shape, layout, pack, training_shape

COUNT = 200


class Case(NamedTuple):
    """A mask and the tensors' shapes.  kept: rows that ask (all, or the scored ones of the last layer)."""

    intervals: torch.Tensor
    heads: int
    kv_heads: int
    kept: torch.Tensor

    def tensors(
        self, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> list[torch.Tensor]:
        """q of the kept rows, k and v of all, a gradient of the output; normally distributed."""
        noise, rows, keys = torch.Generator().manual_seed(seed), len(self.kept), len(self.intervals)
        shapes = [(rows, self.heads), (keys, self.kv_heads), (keys, self.kv_heads), (rows, self.heads)]
        return [torch.randn(*shape, head_dim, generator=noise).to(device, dtype) for shape in shapes]


def _clips(draw: random.Random, frames: int) -> tuple[int, ...]:
    """A uniform split of `frames` into a uniform number of clips, as stages 2 to 4 draw them."""
    cuts = sorted(draw.sample(range(1, frames), draw.randint(1, frames) - 1)) if frames > 1 else []
    return tuple(stop - start for start, stop in zip([0, *cuts], [*cuts, frames]))


def _sample(draw: random.Random, budget: int) -> ClipShape:
    """One sequence of about `budget` tokens at most: training splits, sampling with a history, single clips, odd
    mixtures.
    """
    grid = draw.choice([(1, 1), (2, 3), (4, 4), (5, 7)])
    most = max(1, min(80, budget // (2 * (grid[0] * grid[1] + 2))))
    frames = draw.choice([1, most, draw.randint(1, most)])
    kind = draw.choice(["training", "training", "singles", "one clip", "history", "mixture"])
    if kind == "singles":
        return training_shape((1,) * frames, grid)
    if kind == "one clip":
        return training_shape((frames,), grid)
    if kind == "history":
        return history_shape(draw.randint(0, frames), draw.randint(1, max(1, frames // 2)), grid)
    if kind == "mixture":
        clips = tuple(
            Clip(n, has_clean=draw.random() < 0.7, has_noisy=draw.random() < 0.7) for n in _clips(draw, frames)
        )
        return ClipShape(clips, grid, prefix=draw.randint(0, 3))
    return training_shape(_clips(draw, frames), grid)


def random_case(seed: int, budget: int = 300) -> Case:
    """Case number `seed` with rows of about `budget` tokens."""
    draw = random.Random(seed)
    count = draw.choice([1, 1, 2, 3])
    samples = [layout(_sample(draw, budget // count)) for _ in range(count)]
    samples = [sample for sample in samples if len(sample)] or [layout(training_shape((1,), (2, 3)))]
    intervals = pack(samples, draw.choice([1, 1, 16, 128])).intervals
    kv_heads = draw.choice([1, 2])
    rows = torch.arange(len(intervals))
    if draw.random() < 0.25:
        rows = rows[torch.tensor([draw.random() < 0.5 for _ in rows])]
    return Case(
        intervals, kv_heads * draw.choice([1, 1, 2, 3]), kv_heads, rows if len(rows) else torch.arange(len(intervals))
    )


def over_time(sizes: tuple[tuple[int, int], ...] = ((3, 7), (17, 4), (40, 2)), padding: int = 5) -> Case:
    """Each cell over time, as attention gets it from a mask with an order: a causal block for every cell.

    sizes: (frames, cells) of each sample.
    """
    blocks = [torch.arange(1, frames + 1) for frames, cells in sizes for _ in range(cells)]
    starts = torch.tensor([0, *map(len, blocks)]).cumsum(0)
    first = torch.cat([starts[:-1].repeat_interleave(starts.diff()), starts[-1].expand(padding)])
    last = first + torch.cat([*blocks, torch.ones(padding, dtype=torch.int64)])
    intervals = torch.stack([first, last, 0 * first, 0 * first], dim=1).to(torch.int32)
    return Case(intervals, 2, 1, torch.arange(len(intervals)))
