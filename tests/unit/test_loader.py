"""The loader: same samples at any rank count, micro-batch size, worker count and resume point; bad samples named and replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_videogpt.config.schema import CodecConfig, DataConfig, PhysicsConfig
from megatron_videogpt.data.clips import Sample, SamplePlan, plan_sample, sample_key
from megatron_videogpt.data.codec import build_codec
from megatron_videogpt.data.decode import BadVideo, to_model_range, write_video
from megatron_videogpt.data.index import Source, open_source
from megatron_videogpt.data.loader import Loader, load_sample, validation_samples
from megatron_videogpt.train.watchdog import born

REPOSITORY = Path(__file__).resolve().parents[2]

CODEC = build_codec(CodecConfig())
CONFIG = DataConfig(frames=4, frame_interval=(1, 3), clips=(1, 4), workers=0, physics=PhysicsConfig(size=32, epoch_scenes=10))


def take(loader: Loader, lists: int) -> list[Sample]:
    samples = [sample for _ in range(lists) for sample in next(loader)]
    loader.close()
    return samples


def same(a: list[Sample], b: list[Sample]) -> bool:
    return [(s.key, s.name, s.clips) for s in a] == [(s.key, s.name, s.clips) for s in b] and all(torch.equal(x.mean, y.mean) for x, y in zip(a, b))


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(CONFIG, CODEC)


@pytest.fixture(scope="module")
def reference_order(source: Source) -> list[Sample]:
    """Samples 0..23 of seed 3, one at a time."""
    return take(Loader(source, CODEC, CONFIG, 3, 1, 1), 24)


def test_numbering_crosses_epochs(source: Source, reference_order: list[Sample]) -> None:
    assert [sample.key for sample in reference_order] == [sample_key(3, g // 10, g % 10) for g in range(24)]
    assert len({sample.mean.numpy().tobytes() for sample in reference_order}) == 24
    for sample in reference_order:
        assert sample.mean.shape == (4, CODEC.channels, 4, 4) and sum(sample.clips) == 4 and sample.pixels is None


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(8, 1, 1), (8, 4, 1), (8, 2, 2), (8, 1, 4), (4, 2, 2), (12, 3, 2)])
def test_same_global_batches_at_any_division(source: Source, reference_order: list[Sample], batch: int, micro: int, ranks: int) -> None:
    steps, share = 24 // batch, batch // ranks
    dealt = [take(Loader(source, CODEC, CONFIG, 3, batch, micro, rank, ranks), steps * share // micro) for rank in range(ranks)]
    order = [sample for step in range(steps) for rank in range(ranks) for sample in dealt[rank][step * share : (step + 1) * share]]
    assert same(order, reference_order)


def test_resume_goes_on_where_it_stopped(source: Source, reference_order: list[Sample]) -> None:
    loader = Loader(source, CODEC, CONFIG, 3, 8, 4)
    first = take(loader, 2)
    assert loader.consumed == 8
    assert same(first + take(Loader(source, CODEC, CONFIG, 3, 8, 4, consumed=loader.consumed), 4), reference_order)


def test_worker_processes_change_nothing(source: Source, reference_order: list[Sample]) -> None:
    loader = Loader(source, CODEC, replace(CONFIG, workers=2), 3, 8, 2)
    assert same(take(loader, 12), reference_order)


def test_seeds_differ(source: Source, reference_order: list[Sample]) -> None:
    other = take(Loader(source, CODEC, CONFIG, 4, 1, 1), 8)
    assert not {sample.key for sample in other} & {sample.key for sample in reference_order}


def test_latents_are_those_of_the_pixels(source: Source) -> None:
    loader = Loader(source, CODEC, CONFIG, 3, 2, 2, keep_pixels=True)
    for sample in take(loader, 1):
        assert sample.pixels is not None and sample.pixels.shape == (4, 32, 32, 3) and sample.pixels.dtype == np.uint8
        torch.testing.assert_close(sample.mean, CODEC.encode(to_model_range(sample.pixels))[0], atol=1e-5, rtol=0)


def test_validation_is_fixed_and_disjoint(source: Source, reference_order: list[Sample]) -> None:
    first, second = (validation_samples(source, CODEC, CONFIG, 3, 12) for _ in range(2))
    assert same(first, second) and len({sample.key for sample in first}) == 12
    assert not {sample.key for sample in first} & {sample.key for sample in reference_order}
    assert first[0].pixels is not None
    assert same(validation_samples(source, CODEC, CONFIG, 3, 5, keep_pixels=False), first[:5])


class Patchy:
    """A split in which some items cannot be read."""

    name = "train"

    def __init__(self, bad: set[int], length: int = 40) -> None:
        self.bad, self.length = bad, length

    def __len__(self) -> int:
        return self.length

    def plan(self, seed: int, epoch: int, index: int, attempt: int = 0) -> SamplePlan:
        key = sample_key(seed, epoch, index, f"{self.name} {attempt}" if attempt else self.name)
        return plan_sample(CONFIG, 1, key, key % self.length if attempt else index, None)

    def pixels(self, plan: SamplePlan) -> np.ndarray:
        if plan.item in self.bad:
            raise BadVideo(f"v{plan.item}.mp4", "torn")
        return np.full((4, 32, 32, 3), plan.item, np.uint8)

    def label(self, plan: SamplePlan) -> str:
        return f"v{plan.item}"


def test_bad_samples_are_named_counted_and_replaced_alike_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    bad = {3, 17, 30}
    source = Source(Patchy(bad), Patchy(set()))
    loader = Loader(source, CODEC, CONFIG, 0, 8, 4)
    samples = take(loader, 10)
    assert [s.name for i, s in enumerate(samples) if i not in bad] == [f"v{i}" for i in range(40) if i not in bad]
    assert all(samples[i].name not in {f"v{j}" for j in bad} for i in bad)
    assert loader.rejected >= 3 and all(f"v{i}.mp4: torn" in caplog.text for i in bad)
    assert loader.rejected == caplog.text.count("rejected sample")
    half = take(Loader(source, CODEC, CONFIG, 0, 8, 2, 1, 2), 10)
    assert same(half, [s for step in range(5) for s in samples[step * 8 + 4 : step * 8 + 8]])


def test_too_many_bad_samples_stop_the_run() -> None:
    config = replace(CONFIG, max_bad_fraction=0.01)
    loader = Loader(Source(Patchy(set(range(0, 40, 2))), Patchy(set())), CODEC, config, 0, 1, 1)
    with pytest.raises(ValueError, match="of the last .* samples could not be read, over data.max_bad_fraction=0.01"):
        for _ in range(40):
            next(loader)
    assert 11 <= loader.rejected <= 20


def test_nothing_readable_is_one_line() -> None:
    unreadable = Source(Patchy(set(range(40))), Patchy(set(range(40))))
    assert load_sample(unreadable.train, 0, 0, 0)[0] is None
    for workers in (0, 1):
        with pytest.raises(ValueError, match="no readable sample in 50 attempts; the last: v[0-9]+.mp4: torn") as caught:
            next(Loader(unreadable, CODEC, replace(CONFIG, workers=workers, max_bad_fraction=1.0), 0, 1, 1))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="validation samples could not be read"):
        validation_samples(unreadable, CODEC, CONFIG, 0, 4)


def test_a_file_that_vanishes_is_replaced(tmp_path: Path) -> None:
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8).repeat(12, 0)
        write_video(tmp_path / f"v{i}.mp4", frames, 10)
    config = replace(CONFIG, source="videos", path=str(tmp_path), longest_side=32, min_side=16, frame_interval=(3, 3))
    source = open_source(config, CODEC)
    gone = source.train.segments[0].info.path  # type: ignore[attr-defined]
    shutil.move(gone, tmp_path / "elsewhere")
    loader = Loader(source, CODEC, config, 0, 3, 3)
    samples = take(loader, 2)
    assert len(samples) == 6 and loader.rejected >= 2 and all(gone not in sample.name for sample in samples)


def test_sizes_that_do_not_divide(source: Source) -> None:
    with pytest.raises(ValueError, match="train.global_batch_size=6.*multiple of.*4 times 1"):
        Loader(source, CODEC, CONFIG, 0, 6, 4)


def test_workers_do_not_outlive_a_killed_trainer(tmp_path: Path) -> None:
    script = """
import multiprocessing, os
from megatron_videogpt.config.schema import CodecConfig, DataConfig, PhysicsConfig
from megatron_videogpt.data.codec import build_codec
from megatron_videogpt.data.index import open_source
from megatron_videogpt.data.loader import Loader
if __name__ == "__main__":
    codec = build_codec(CodecConfig())
    data = DataConfig(source="physics", frames=4, clips=(1, 4), frame_interval=(2, 3), workers=1, physics=PhysicsConfig(size=32, epoch_scenes=20))
    loader = Loader(open_source(data, codec), codec, data, 0, 2, 2)
    next(loader)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
"""
    (tmp_path / "trainer.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, str(tmp_path / "trainer.py")], env=env, capture_output=True, text=True, timeout=200)
    workers = [int(pid) for pid in result.stdout.split()]
    assert workers, result.stderr
    deadline = time.monotonic() + 60
    while any(born(pid) is not None for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)
