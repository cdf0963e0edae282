"""Stop anywhere, start again with other ranks, workers, rows and batches: the same samples, with the same numbers and
the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.data.sources.open import open_source
from tests.loading import loader_of

from .sets import latent_shards, video_folder, video_shards

CODEC = build_codec(CodecConfig())
SIDE = 64
DATA = DataConfig(
    source="shards",
    frames=4,
    min_frames=3,
    frame_interval=(12, 20),
    clips=(1, 4),
    longest_side=SIDE,
    min_side=128,
    size_multiple=16,
    validation_fraction=0.2,
)
LONGEST = 7 * (4 * 4 + 2)
"""Tokens of the longest sample: a square picture, and one frame in the last clip."""


@dataclass(frozen=True)
class Leg:
    """A part of a run: how many steps, and all that may differ from one part to the next."""

    steps: int
    ranks: int
    micro: int
    rows: int
    budget: int
    workers: int

    @property
    def batch(self) -> int:
        return self.ranks * self.micro * self.rows


LEGS = st.lists(
    st.builds(
        Leg,
        steps=st.integers(1, 4),
        ranks=st.integers(1, 3),
        micro=st.integers(1, 3),
        rows=st.integers(1, 2),
        budget=st.sampled_from([0, 0, LONGEST, 300, 1000]),
        # A process takes a second to start.
        workers=st.sampled_from([0, 0, 0, 0, 0, 2]),
    ),
    min_size=2,
    max_size=4,
)


class Whole:
    """A data set, and the samples of an uninterrupted run: one process, one sample a step."""

    def __init__(self, config: DataConfig) -> None:
        self.config = replace(config, workers=0)
        self.source = open_source(config, CODEC)
        self.loader = loader_of(
            self.source, CODEC, Config(data=self.config, train=TrainConfig(global_batch_size=1, seed=5))
        )
        self.samples: list[Sample] = []

    def sample(self, number: int) -> Sample:
        while len(self.samples) <= number:
            ((row,),) = [next(self.loader)]
            self.samples += row.samples
        return self.samples[number]


def walk(whole: Whole, legs: list[Leg]) -> list[Sample]:
    """All samples of the parts, each of which starts at the count of consumed samples that the one before left."""
    samples, consumed = [], 0
    for leg in legs:
        data = replace(whole.config, workers=leg.workers, pack_tokens=leg.budget)
        train = TrainConfig(global_batch_size=leg.batch, micro_batch_size=leg.micro, seed=5)
        loaders = [
            loader_of(whole.source, CODEC, Config(data=data, train=train), rank, leg.ranks, consumed)
            for rank in range(leg.ranks)
        ]
        for _ in range(leg.steps):
            step = [
                sample for loader in loaders for row in next(loader) for sample in row.samples if sample.number >= 0
            ]
            samples += sorted(step, key=lambda sample: sample.number)
        (consumed,) = {loader.consumed for loader in loaders}
        for loader in loaders:
            loader.close()
    assert consumed == len(samples)
    return samples


def check(whole: Whole, legs: list[Leg]) -> None:
    samples = walk(whole, legs)
    assert [sample.number for sample in samples] == list(range(len(samples)))
    for ours in samples:
        theirs = whole.sample(ours.number)
        assert (ours.key, ours.name, ours.clips, ours.scored) == (theirs.key, theirs.name, theirs.clips, True)
        assert torch.equal(ours.mean, theirs.mean) and (ours.logvar is None) == (theirs.logvar is None)


def explore(whole: Whole, runs: int) -> None:
    """Check some runs of random parts."""

    @settings(deadline=None, max_examples=runs, suppress_health_check=[HealthCheck.too_slow])
    @given(LEGS)
    def explored(legs: list[Leg]) -> None:
        check(whole, legs)

    explored()


def test_generated_scenes() -> None:
    whole = Whole(
        DataConfig(frames=4, frame_interval=(1, 3), clips=(1, 4), physics=PhysicsConfig(size=64, epoch_scenes=7))
    )

    explore(whole, 10)


@pytest.fixture(scope="module")
def real(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """The same clips in four forms."""
    root = tmp_path_factory.mktemp("data")
    folder = video_folder(root / "folder", videos)
    shards = video_shards(root / "shards", videos)
    latents = latent_shards(root / "latents", videos, CODEC, SIDE, DATA.size_multiple)
    configs = {
        "folder": replace(DATA, source="videos", path=str(folder)),
        "shards": replace(DATA, path=str(shards)),
        "latents": replace(DATA, path=str(latents)),
        "mixture": replace(DATA, mixture={str(shards): 0.7, str(latents): 0.3}),
    }
    return {form: Whole(config) for form, config in configs.items()}


@pytest.mark.parametrize(("form", "runs"), [("folder", 3), ("shards", 4), ("latents", 12), ("mixture", 4)])
def test_real_videos(form: str, runs: int, real: dict[str, Whole]) -> None:
    explore(real[form], runs)


@pytest.mark.long
@pytest.mark.parametrize(("form", "runs"), [("folder", 10), ("shards", 10), ("latents", 60), ("mixture", 10)])
def test_real_videos_many_times(form: str, runs: int, real: dict[str, Whole]) -> None:
    # Stored latents take a twentieth of the time of videos that are decoded and encoded, and go through the same parts.
    explore(real[form], runs)


@pytest.mark.parametrize("form", ["folder", "shards", "latents"])
def test_each_epoch_has_every_sample_once(form: str, real: dict[str, Whole]) -> None:
    """By hand: a video of n frames gives max(1, n // span) samples an epoch, and all of them come before any comes
    again.
    """
    split = real[form].source.train
    span = 3 * DATA.frame_interval[0] + 1
    visits = [max(1, int(frames) // span) for frames in split.collection.entries["frames"][split.items]]  # type: ignore[attr-defined]
    assert len(split) == sum(visits) > len(visits) >= 3
    samples = walk(
        real[form], [Leg(1, 2, 1, 2, 0, 0), Leg(2, 1, 3, 1, 300, 0), Leg(-(-2 * len(split) // 6), 3, 1, 2, LONGEST, 0)]
    )
    for epoch in (0, 1):
        names = [
            sample.name.split("[")[0] if form == "folder" else sample.name.rpartition("[")[0]
            for sample in samples[epoch * len(split) :][: len(split)]
        ]
        assert sorted(names.count(name) for name in set(names)) == sorted(visits)
    assert len({sample.mean.numpy().tobytes() for sample in samples[: 2 * len(split)]}) > len(split), (
        "the epochs must not repeat each other"
    )


def test_all_forms_give_the_same_latents(real: dict[str, Whole]) -> None:
    """Folder and shards bit by bit, through the same codec; stored latents to rounding (other batches of frames were
    encoded together).
    """
    for number in range(8):
        # Names of the forms differ, and with them what is held out; the first samples of shards and latents are of the
        # same videos.
        one, two = (real[form].sample(number) for form in ("shards", "latents"))
        assert (one.key, one.clips) == (two.key, two.clips)
        torch.testing.assert_close(one.mean, two.mean, atol=1e-4, rtol=1e-4)
