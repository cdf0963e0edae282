"""What cannot be read: blanks in its place, counts, and an end when it is too much."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_videogpt.config.schema_data import PhysicsConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.plans import Plans, Sample, SamplePlan
from megatron_videogpt.data.sources.open import Source, open_source
from megatron_videogpt.data.splits import Longest
from megatron_videogpt.data.video.pictures import to_pixels, write_video
from megatron_videogpt.errors import UserError
from tests.loading import loader_of

from .test_loader import CODEC, DATA, config_of, held_out, same, take


@dataclass(frozen=True)
class PatchyJob:
    """Latents or pixels that say their number; or what is wrong."""

    plan: SamplePlan
    trouble: str

    @property
    def label(self) -> str:
        return f"v{self.plan.number}"

    def read(self) -> Sample:
        if self.trouble == "torn":
            raise BadVideo(f"v{self.plan.number % 40}.mp4", "torn", "truncated")
        side = 3 if self.trouble == "smaller" else 4
        mean: Any = np.full((len(self.plan.frames), CODEC.channels, side, 4), self.plan.number / 100, np.float32)
        return Sample(
            self.plan.key, self.label, mean, np.ones_like(mean) if self.trouble == "latents" else None, self.plan.clips
        )  # type: ignore[arg-type]


class Patchy:
    """Latents, 40 an epoch, of which some cannot be read; trouble: index -> what."""

    name, fingerprint = "train", "0"

    def __init__(self, trouble: dict[int, str]) -> None:
        self.trouble, self.like = (
            trouble,
            open_source(replace(DATA, physics=PhysicsConfig(size=32, epoch_scenes=40)), CODEC).train,
        )

    def __len__(self) -> int:
        return 40

    def plans(self, seed: int, numbers: Sequence[int] | np.ndarray) -> Plans:
        return self.like.plans(seed, numbers)

    def job(self, plan: SamplePlan) -> PatchyJob:
        return PatchyJob(plan, self.trouble.get(plan.number % 40, ""))

    def largest_tokens(self, longest: Longest) -> int:
        return self.like.largest_tokens(longest)


def test_bad_samples_leave_blanks_and_are_counted_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = {3: "torn", 17: "smaller", 30: "torn"}
    source, good, file = (
        Source(Patchy(trouble), Patchy({})),
        Source(Patchy({}), Patchy({})),
        tmp_path / "run" / "rejected.jsonl",
    )
    loader = loader_of(source, CODEC, config_of(8, 4), rejected_file=file)
    samples, whole = take(loader, 10), take(loader_of(good, CODEC, config_of(8, 4)), 10)
    lost = {3, 17, 30, 43, 57, 70}
    assert {sample.number for sample in samples if not sample.scored} == lost and len(samples) == 80
    assert same([s for s in samples if s.scored], [s for s in whole if s.number not in lost])
    for number in lost:
        blank, there = samples[number], whole[number]
        assert (
            (blank.key, blank.clips, blank.mean.shape) == (there.key, there.clips, there.mean.shape)
            and not blank.mean.any()
            and blank.logvar is None
        )
    assert loader.rejections.counts == {"truncated": 4, "metadata": 2}
    # Sample 57 has another name than 17, as another part of the same video would; v3.mp4 and v30.mp4 come again in the
    # second epoch.
    named = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["name"] for line in named] == ["v3.mp4", "v17", "v30.mp4", "v57"] and caplog.text.count(
        "v3.mp4: torn"
    ) == 1
    assert named[0] == {"name": "v3.mp4", "kind": "truncated", "reason": "torn"}
    assert "latents [4, 16, 3, 4], but by the index [4, 16, 4, 4]" in named[1]["reason"]
    # A second run of the loader names nobody twice, and other ranks see the same blanks.
    half = take(loader_of(source, CODEC, config_of(8, 2), 1, 2, rejected_file=file), 10)
    assert (
        same(half, [s for step in range(10) for s in samples[step * 8 + 4 : step * 8 + 8]])
        and len(file.read_text().splitlines()) == 4
    )


def test_too_many_bad_samples_stop_the_run() -> None:
    source = Source(Patchy(dict.fromkeys(range(0, 40, 2), "torn")), Patchy({}))
    loader = loader_of(source, CODEC, config_of(1, max_bad_fraction=0.01))
    with pytest.raises(
        ValueError,
        match="11 of the last 21 samples could not be read, over data.max_bad_fraction=0.01.*: 11 "
        "truncated.*v20.mp4: torn",
    ) as caught:
        for _ in range(40):
            next(loader)
    assert "\n" not in str(caught.value) and loader.consumed == 20


def test_validation_goes_on_to_the_next_samples() -> None:
    source = Source(Patchy({}), Patchy({2: "torn"}))
    assert [sample.number for sample in held_out(source, 5)[0]] == [0, 1, 3, 4, 5]
    unreadable = Source(Patchy({}), Patchy(dict.fromkeys(range(40), "torn")))
    with pytest.raises(UserError, match="^4 of 4 validation samples could not be read; the last: v3.mp4: torn$"):
        held_out(unreadable, 4)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_every_replica_reads_its_share_of_validation_and_no_more(
    replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = Source(Patchy({}), Patchy({2: "torn"})), []
    monkeypatch.setattr(
        Patchy, "job", lambda self, plan, real=Patchy.job: (asked.append(plan.number), real(self, plan))[1]
    )
    shares = held_out(source, 7, replicas)
    # As one list that is dealt out: the first sample, which is shown, is the first replica's.
    assert [[sample.number for sample in share] for share in shares] == [
        [0, 1, 3, 4, 5, 6, 7][n::replicas] for n in range(replicas)
    ]
    # A bad one moves those after it to the next replica, once; nobody reads everything.
    assert len(asked) <= 8 + 5 and set(asked) == set(range(8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_skipped(tmp_path: Path, workers: int) -> None:
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8).repeat(12, 0)
        write_video(tmp_path / f"v{i}.mp4", frames, 10)
    config = config_of(
        3, 3, source="videos", path=str(tmp_path), longest_side=32, min_side=16, frame_interval=(3, 3), workers=workers
    )
    source = open_source(config.data, CODEC)
    plans = source.train.plans(3, range(6))
    videos = [source.train.job(plans[n]).label.split("[")[0] for n in range(6)]
    shutil.move(videos[1], tmp_path / "elsewhere")
    loader = loader_of(source, CODEC, config)
    samples = take(loader, 2)
    assert [sample.scored for sample in samples] == [video != videos[1] for video in videos]
    assert loader.rejections.counts == {"missing": videos.count(videos[1])} and 0 < videos.count(videos[1]) < 6


def test_latents_are_not_encoded_and_pixels_are_their_decoding() -> None:
    source = Source(Patchy({1: "latents"}), Patchy({}))
    plain, variance = take(loader_of(source, CODEC, config_of(2), keep_pixels=True), 1)
    assert (
        plain.logvar is None
        and variance.logvar is not None
        and bool((variance.logvar == 1).all())
        and bool((variance.mean == np.float32(0.01)).all())
    )
    assert variance.pixels is not None and variance.pixels.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(variance.pixels, to_pixels(CODEC.decode(variance.mean)))
    assert all(sample.pixels is None for sample in take(loader_of(source, CODEC, config_of(2)), 1))
