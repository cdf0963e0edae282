"""The loader: same samples at any rank count, packing, micro-batch size, worker count and resume point; bad samples
leave blanks and are named once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.loader import HeldOut, Loader, readable
from megatron_videogpt.data.plans import Sample, sample_key
from megatron_videogpt.data.sources.open import Source, open_source
from megatron_videogpt.data.video.pictures import to_model_range
from megatron_videogpt.objective.build import build_objective
from megatron_videogpt.train.processes import process_start_time
from tests.loading import loader_of

REPOSITORY = Path(__file__).resolve().parents[2]

CODEC = build_codec(CodecConfig())
DATA = DataConfig(
    frames=4, frame_interval=(1, 3), clips=(1, 4), workers=0, physics=PhysicsConfig(size=32, epoch_scenes=10)
)
LONGEST = 7 * (4 + 2)
"""Tokens of a sample of four 32 x 32 frames whose last clip has one frame."""


def config_of(batch: int = 8, micro: int = 1, seed: int = 3, **data: Any) -> Config:
    return Config(
        data=replace(DATA, **data), train=TrainConfig(global_batch_size=batch, micro_batch_size=micro, seed=seed)
    )


def take(loader: Loader, steps: int) -> list[Sample]:
    """The samples of some steps, by number; fillers of empty rows are left out."""
    samples = [sample for _ in range(steps) for row in next(loader) for sample in row.samples if sample.number >= 0]
    loader.close()
    return sorted(samples, key=lambda sample: sample.number)


def same(a: list[Sample], b: list[Sample]) -> bool:
    facts = [[(s.number, s.key, s.name, s.clips, s.scored) for s in samples] for samples in (a, b)]
    return facts[0] == facts[1] and all(torch.equal(x.mean, y.mean) for x, y in zip(a, b))


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(DATA, CODEC)


@pytest.fixture(scope="module")
def reference_order(source: Source) -> list[Sample]:
    """Samples 0..23 of seed 3, one at a time."""
    return take(loader_of(source, CODEC, config_of(batch=1)), 24)


def test_numbering_crosses_epochs(source: Source, reference_order: list[Sample]) -> None:
    assert [sample.number for sample in reference_order] == list(range(24))
    assert [sample.key for sample in reference_order] == [sample_key(3, g // 10, g % 10) for g in range(24)]
    assert len({sample.mean.numpy().tobytes() for sample in reference_order}) == 24
    for sample in reference_order:
        assert (
            sample.mean.shape == (4, CODEC.channels, 4, 4)
            and sum(sample.clips) == 4
            and sample.pixels is None
            and sample.scored
        )


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "budget"),
    [
        (8, 1, 1, 0),
        (8, 4, 1, 0),
        (8, 2, 2, 0),
        (8, 1, 4, 0),
        (4, 2, 2, 0),
        (12, 3, 2, 0),
        (8, 1, 1, LONGEST),
        (8, 1, 3, 90),
        (12, 1, 2, 200),
        (3, 1, 5, LONGEST),
    ],
)
def test_same_global_batches_at_any_division(
    source: Source, reference_order: list[Sample], batch: int, micro: int, ranks: int, budget: int
) -> None:
    config, steps = config_of(batch, micro, pack_tokens=budget), 24 // batch
    objective = build_objective(config)
    loaders = [loader_of(source, CODEC, config, rank, ranks) for rank in range(ranks)]
    for step in range(steps):
        dealt = [next(loader) for loader in loaders]
        assert len({len(rows) for rows in dealt}) == 1
        samples = [sample for rows in dealt for row in rows for sample in row.samples if sample.number >= 0]
        assert same(
            sorted(samples, key=lambda sample: sample.number), reference_order[step * batch : (step + 1) * batch]
        )
        if not budget:
            # Contiguous shares, in order.
            assert same(samples, reference_order[step * batch : (step + 1) * batch]) and all(
                len(row.samples) == micro for rows in dealt for row in rows
            )
        for row in (row for rows in dealt for row in rows):
            tokens = sum(len(objective.layout(sample)) for sample in row.samples)
            assert (
                tokens <= row.length <= (budget or tokens)
                and objective.prepare(row.samples, row.length).length == row.length
            )
    assert [loader.consumed for loader in loaders] == [24 // batch * batch] * ranks


def test_a_row_without_samples_holds_a_blank(source: Source) -> None:
    config = config_of(batch=1, pack_tokens=64)
    rows = [next(loader_of(source, CODEC, config, rank, 2)) for rank in (0, 1)]
    ((full,), (empty,)) = sorted(rows, key=lambda own: own[0].samples[0].number, reverse=True)
    assert full.samples[0].number == 0 and [sample.scored for sample in empty.samples] == [False]
    row = build_objective(config).prepare(empty.samples, empty.length)
    assert row.count == 0 and row.length == empty.length <= 64


def test_resume_goes_on_where_it_stopped(source: Source, reference_order: list[Sample]) -> None:
    loader = loader_of(source, CODEC, config_of(batch=8, micro=4))
    first = take(loader, 1)
    assert loader.consumed == 8
    rest = [take(loader_of(source, CODEC, config_of(4, pack_tokens=100), rank, 2, consumed=8), 4) for rank in (0, 1)]
    assert same(first + sorted(rest[0] + rest[1], key=lambda sample: sample.number), reference_order)


def test_worker_processes_change_nothing(source: Source, reference_order: list[Sample]) -> None:
    assert same(take(loader_of(source, CODEC, config_of(batch=8, micro=2, workers=2)), 3), reference_order)


def test_seeds_differ(source: Source, reference_order: list[Sample]) -> None:
    other = take(loader_of(source, CODEC, config_of(seed=4)), 1)
    assert not {sample.key for sample in other} & {sample.key for sample in reference_order}


def test_latents_are_those_of_the_pixels(source: Source) -> None:
    for sample in take(loader_of(source, CODEC, config_of(batch=2), keep_pixels=True), 1):
        assert sample.pixels is not None and sample.pixels.shape == (4, 32, 32, 3) and sample.pixels.dtype == np.uint8
        torch.testing.assert_close(sample.mean, CODEC.encode(to_model_range(sample.pixels))[0], atol=1e-5, rtol=0)


def held_out(source: Source, count: int, replicas: int = 1, keep_pixels: bool = True) -> list[list[Sample]]:
    """Held-out samples as so many replicas share them: each reads its own only."""
    readers = [HeldOut(source, CODEC, config_of(), keep_pixels) for _ in range(replicas)]

    def read(numbers: list[int]) -> dict[int, BadVideo]:
        found = [reader.read(numbers[n::replicas]) for n, reader in enumerate(readers)]
        return {number: error for part in found for number, error in part.items()}

    numbers = readable(config_of(), count, read)
    return [[reader.samples[number] for number in numbers[n::replicas]] for n, reader in enumerate(readers)]


def test_validation_is_fixed_and_disjoint(source: Source, reference_order: list[Sample]) -> None:
    (first,), (second,) = (held_out(source, 12) for _ in range(2))
    assert same(first, second) and len({sample.key for sample in first}) == 12
    assert not {sample.key for sample in first} & {sample.key for sample in reference_order}
    assert first[0].pixels is not None
    assert same(held_out(source, 5, keep_pixels=False)[0], first[:5])


def test_sizes_that_do_not_divide(source: Source) -> None:
    with pytest.raises(ValueError, match="train.global_batch_size=6.*multiple of.*4 times 1"):
        loader_of(source, CODEC, config_of(6, 4))
    with pytest.raises(ValueError, match=f"data.pack_tokens=41.*{LONGEST} tokens"):
        loader_of(source, CODEC, config_of(6, pack_tokens=41))


def test_workers_do_not_outlive_a_killed_trainer(tmp_path: Path) -> None:
    script = """
import multiprocessing, os
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.sources.open import open_source
from tests.loading import loader_of
if __name__ == "__main__":
    codec = build_codec(CodecConfig())
    scenes = PhysicsConfig(size=32, epoch_scenes=20)
    data = DataConfig(source="physics", frames=4, clips=(1, 4), frame_interval=(2, 3), workers=1, physics=scenes)
    loader = loader_of(open_source(data, codec), codec, Config(data=data, train=TrainConfig(global_batch_size=2)))
    next(loader)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
"""
    (tmp_path / "trainer.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, str(tmp_path / "trainer.py")], env=env, capture_output=True, text=True, timeout=200
    )
    workers = [int(pid) for pid in result.stdout.split()]
    assert workers, result.stderr
    deadline = time.monotonic() + 60
    while any(process_start_time(pid) is not None for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)
