"""Sources and their splits: what is usable, who is held out, what an epoch visits, mixtures, and fingerprints of what
samples are made of.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_videogpt.codec.geometry import CodecGeometry
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.decode import read_frames
from megatron_videogpt.data.jobs import FileJob
from megatron_videogpt.data.mixture import Mixture
from megatron_videogpt.data.plans import Plans, SamplePlan
from megatron_videogpt.data.sources.files import list_videos
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.splits import VideoSplit
from megatron_videogpt.data.video.pictures import resize_frames, write_video

TINY = CodecGeometry(16, 8, 1)
WAN = CodecGeometry(16, 8, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 30..80 frames, one in a sub-folder, and some that cannot be used."""
    root = tmp_path_factory.mktemp("folder")
    (root / "sub").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        frame = rng.integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
        write_video(root / ("sub" if i == 5 else "") / f"v{i}.mp4", frame.repeat(30 + 10 * i, 0), 24)
    write_video(root / "short.mp4", np.zeros((5, 48, 64, 3), np.uint8), 24)
    write_video(root / "small.mp4", np.zeros((40, 16, 16, 3), np.uint8), 24)
    write_video(root / "wide.mp4", np.zeros((40, 32, 160, 3), np.uint8), 24)
    (root / "text.mp4").write_text("not a video")
    (root / "notes.txt").write_text("ignored")
    return root


def folder_config(folder: Path, **changes: object) -> DataConfig:
    base = DataConfig(
        source="videos", path=str(folder), frames=8, frame_interval=(1, 2), clips=(2, 8), longest_side=64, min_side=32
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def names(split: object) -> set[str]:
    assert isinstance(split, VideoSplit)
    return {split.collection.name(i) for i in split.items.tolist()}


def listed(plans: Plans) -> list[SamplePlan]:
    return [plans[i] for i in range(len(plans))]


def test_bad_videos_are_named_counted_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(folder_config(folder), TINY)
    assert sorted(Path(error.path).name for error in source.skipped) == [
        "short.mp4",
        "small.mp4",
        "text.mp4",
        "wide.mp4",
    ]
    reasons = {Path(error.path).name: error.reason for error in source.skipped}
    assert (
        "too short: 5 frames" in reasons["short.mp4"]
        and "min_side" in reasons["small.mp4"]
        and "max_aspect" in reasons["wide.mp4"]
    )
    assert source.left_out == Counter(too_short=1, too_small=1, unreadable=1, too_elongated=1)
    assert "4 of 10 videos" in caplog.text
    assert all(str(error) in caplog.text for error in source.skipped)


def test_limits_are_rules_too(folder: Path) -> None:
    assert open_source(folder_config(folder, max_video_frames=45), TINY).left_out["too_large"] == 4
    with pytest.raises(ValueError, match="none of 10 videos"):
        open_source(folder_config(folder, max_megapixels=0.001), TINY)


def test_split_is_disjoint_and_by_name(folder: Path) -> None:
    source = open_source(folder_config(folder, validation_fraction=0.4), TINY)
    train, held_out = names(source.train), names(source.validation)
    assert len(train | held_out) == 6 and not train & held_out and train and held_out
    assert len(names(open_source(folder_config(folder, validation_fraction=0.001), TINY).validation)) == 1
    assert len(names(open_source(folder_config(folder, validation_fraction=0.999), TINY).train)) == 1


def test_a_moved_folder_gives_the_same_samples_and_fingerprint(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    here, there = (open_source(folder_config(root), TINY) for root in (folder, tmp_path / "copy"))
    assert {Path(name).relative_to(folder) for name in names(here.validation)} == {
        Path(name).relative_to(tmp_path / "copy") for name in names(there.validation)
    }
    assert here.train.fingerprint == there.train.fingerprint
    plans = [listed(source.train.plans(3, range(40))) for source in (here, there)]
    assert plans[0] == plans[1]
    write_video(tmp_path / "copy" / "v0.mp4", np.zeros((31, 48, 64, 3), np.uint8), 24)
    assert open_source(folder_config(tmp_path / "copy"), TINY).train.fingerprint != here.train.fingerprint


def test_every_option_of_the_plan_is_in_the_fingerprint(folder: Path) -> None:
    changes: list[dict] = [
        {},
        {"frames": 9},
        {"min_frames": 3},
        {"frame_interval": (1, 3)},
        {"clips": (1, 8)},
        {"min_side": 40},
        {"max_aspect": 3.0},
    ]
    changes += [{"longest_side": 128}, {"size_multiple": 8}, {"validation_fraction": 0.4}]
    prints = [open_source(folder_config(folder, **change), TINY).train.fingerprint for change in changes]
    prints += [
        open_source(DataConfig(physics=PhysicsConfig(**change)), TINY).train.fingerprint
        for change in ({}, {"fps": 25.0}, {"difficulty": 1})
    ]
    prints.append(open_source(folder_config(folder), CodecGeometry(16, 8, 2)).train.fingerprint)
    assert len(set(prints)) == len(prints)
    workers = folder_config(folder, workers=7, prefetch=9, cache_gb=1.0, decode_threads=2, pack_tokens=10_000)
    assert open_source(workers, TINY).train.fingerprint == prints[0]


def test_an_epoch_visits_each_video_by_its_length_in_another_order_each_time(folder: Path) -> None:
    split = open_source(folder_config(folder), TINY).train
    assert isinstance(split, VideoSplit)
    expected = Counter(
        {i: max(1, int(frames) // 8) for i, frames in enumerate(split.collection.entries["frames"][split.items])}
    )
    orders = [split.plans(0, range(epoch * len(split), (epoch + 1) * len(split))).item.tolist() for epoch in (0, 1)]
    assert len(split) == expected.total() and Counter(orders[0]) == Counter(orders[1]) == expected
    assert orders[0] != orders[1]


def test_a_plan_depends_on_its_number_alone(folder: Path) -> None:
    split = open_source(folder_config(folder), TINY).train
    together = split.plans(5, range(100))
    picked = split.plans(5, [99, 3, 42])
    assert [picked[i] for i in range(3)] == [together[i] for i in (99, 3, 42)] and picked.number.tolist() == [99, 3, 42]
    assert listed(split.plans(6, range(100))) != listed(together)


def test_a_lone_video_is_cut_in_time(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "v4.mp4", tmp_path / "alone.mp4")
    source = open_source(folder_config(tmp_path), TINY)
    assert isinstance(source.train, VideoSplit) and isinstance(source.validation, VideoSplit)
    assert (source.train.part, source.validation.part) == ((0, 56), (56, 14))
    assert "only one video" in source.notes[0]
    for split, low, high in ((source.train, 0, 56), (source.validation, 56, 70)):
        frames = [frame for plan in listed(split.plans(0, range(200))) for frame in split.job(plan).plan.frames]  # type: ignore[attr-defined]
        assert min(frames) == low and max(frames) == high - 1
    plan = source.validation.plans(0, [0])[0]
    job = source.validation.job(plan)
    assert isinstance(job, FileJob)
    expected = resize_frames(read_frames(tmp_path / "alone.mp4", job.plan.frames), 64, 16)
    sample = job.read()
    np.testing.assert_array_equal(sample.pixels, expected)
    assert (sample.key, sample.clips, sample.number, len(sample.mean)) == (plan.key, plan.clips, 0, 0)
    assert sample.name == f"{tmp_path}/alone.mp4[{56 + plan.frames[0]}::{plan.interval}]"


def test_physics_scenes_of_the_splits_and_epochs_differ() -> None:
    config = DataConfig(frames=2, frame_interval=(2, 4), clips=(1, 2), physics=PhysicsConfig(epoch_scenes=10))
    source = open_source(config, TINY)
    assert len(source.train) == 10
    plans = [plan for split in (source.train, source.validation) for plan in listed(split.plans(0, range(20)))]
    assert len({plan.key for plan in plans}) == 40
    videos = {source.train.job(plan).read().pixels.tobytes() for plan in plans}  # type: ignore[union-attr]
    assert len(videos) == 40
    np.testing.assert_array_equal(
        source.train.job(plans[3]).read().pixels, source.train.job(source.train.plans(0, [3])[0]).read().pixels
    )  # type: ignore[arg-type]


def test_latent_frames_become_video_frames() -> None:
    """With a temporal stride of 4, N latent frames take 1 + 4 (N - 1) frames."""
    plan = open_source(DataConfig(frames=5, frame_interval=(1, 1), clips=(5, 5)), WAN).train.plans(0, [0])[0]
    assert len(plan.frames) == 17 and sum(plan.clips) == 5 and WAN.latent_frames(17) == 5 and WAN.pixel_frames(5) == 17
    with pytest.raises(ValueError, match="1 \\+ 4n"):
        WAN.latent_frames(16)


def test_folders_without_videos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "broken.mp4").write_text("x")
    for path, reason in (("", "empty"), (tmp_path / "nowhere", "no such folder"), (tmp_path / "a.txt", "is a file")):
        with pytest.raises(ValueError, match=reason):
            list_videos(path)
    with pytest.raises(ValueError, match="none of 1 videos.*broken.mp4"):
        open_source(folder_config(tmp_path), TINY)
    (tmp_path / "broken.mp4").unlink()
    with pytest.raises(ValueError, match="no videos"):
        list_videos(tmp_path)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"source": "film"}, "data.source"),
        ({"frames": 0}, "data.frames"),
        ({"min_frames": 9}, "data.min_frames"),
        ({"frame_interval": (3, 2)}, "data.frame_interval"),
        ({"clips": (0, 2)}, "data.clips"),
        ({"clips": (9, 9)}, "data.clips"),
        ({"size_multiple": 12}, "data.size_multiple"),
        ({"longest_side": 72}, "data.longest_side"),
        ({"validation_fraction": 0.0}, "data.validation_fraction"),
        ({"mixture": {"a": 0.0}}, "data.mixture"),
    ],
)
def test_wrong_options_are_one_line(folder: Path, changes: dict, option: str) -> None:
    with pytest.raises(ValueError, match=option) as caught:
        open_source(folder_config(folder, **changes), TINY)
    assert "\n" not in str(caught.value)


def test_folders_mix(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    config = folder_config(folder, path="", mixture={str(folder): 3, str(tmp_path / "other"): 1})
    source = open_source(config, TINY)
    assert isinstance(source.train, Mixture) and source.left_out.total() == 8
    plans = source.train.plans(1, range(8))
    assert Counter(plans.dataset.tolist()) == {0: 6, 1: 2}
    for plan in listed(plans):
        assert source.train.job(plan).label.startswith(str((folder, tmp_path / "other")[plan.dataset]))
