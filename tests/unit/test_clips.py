"""Sample plans: pure functions of their number, with the distributions that the paper's recipe states; sources and their splits."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.config.schema import DataConfig, PhysicsConfig
from megatron_videogpt.data.clips import derived_key, plan_sample, sample_key, split_clips
from megatron_videogpt.data.codec import CodecGeometry
from megatron_videogpt.data.decode import write_video
from megatron_videogpt.data.index import FolderSplit, list_videos, open_source

TINY = CodecGeometry(16, 8, 1)
WAN = CodecGeometry(16, 8, 4)


@given(
    frames=st.integers(1, 40),
    low=st.integers(1, 6),
    extra=st.integers(0, 6),
    stride=st.sampled_from([1, 4]),
    slack=st.integers(0, 200),
    key=st.integers(0, 2**63 - 1),
    clips=st.tuples(st.integers(1, 40), st.integers(0, 40)),
)
@settings(max_examples=300, deadline=None)
def test_plans_fit_the_video(frames: int, low: int, extra: int, stride: int, slack: int, key: int, clips: tuple[int, int]) -> None:
    config = DataConfig(frames=frames, frame_interval=(low, low + extra), clips=(clips[0], clips[0] + clips[1]))
    count = 1 + stride * (frames - 1)
    available = (count - 1) * low + 1 + slack
    plan = plan_sample(config, stride, key, 3, available)
    assert plan == plan_sample(config, stride, key, 3, available) and plan.key == key and plan.item == 3
    assert len(plan.frames) == count and plan.frames[0] >= 0 and plan.frames[-1] < available
    assert set(np.diff(plan.frames)) <= {plan.interval} and low <= plan.interval <= low + extra
    assert sum(plan.clips) == frames and min(plan.clips) >= 1
    assert min(clips[0], frames) <= len(plan.clips) <= min(clips[0] + clips[1], frames)
    with pytest.raises(ValueError, match="too short"):
        plan_sample(config, stride, key, 3, (count - 1) * low)


def test_clip_counts_and_cuts_are_uniform() -> None:
    """frames 4, K in 1..4: each K a quarter; for K = 2 each of three cuts a third (4000 draws, five standard deviations)."""
    rng = random.Random(1)
    draws = [split_clips(rng, 4, (1, 4)) for _ in range(4000)]
    counts = Counter(len(draw) for draw in draws)
    assert all(abs(counts[k] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for k in (1, 2, 3, 4))
    cuts = Counter(draw[0] for draw in draws if len(draw) == 2)
    assert set(cuts) == {1, 2, 3} and all(abs(n - counts[2] / 3) < 5 * (counts[2] * 2 / 9) ** 0.5 for n in cuts.values())


def test_interval_and_start_are_uniform_within_what_the_video_allows() -> None:
    config = DataConfig(frames=5, frame_interval=(2, 9), clips=(1, 1))
    plans = [plan_sample(config, 1, sample_key(0, 0, i), 0, 17) for i in range(3000)]  # 17 frames allow an interval of 4
    intervals = Counter(plan.interval for plan in plans)
    assert set(intervals) == {2, 3, 4} and all(abs(n - 1000) < 130 for n in intervals.values())
    starts = Counter(plan.frames[0] for plan in plans if plan.interval == 2)
    assert set(starts) == set(range(9)) and all(abs(n - intervals[2] / 9) < 55 for n in starts.values())


def test_keys_are_distinct_and_63_bits() -> None:
    keys = {sample_key(s, e, i, split) for s in range(3) for e in range(3) for i in range(50) for split in ("train", "validation")}
    assert len(keys) == 900 and all(0 <= key < 2**63 for key in keys)
    assert sample_key(1, 2, 3) == int.from_bytes(blake2b(b"train/1/2/3", digest_size=8).digest(), "big") >> 1
    assert derived_key(1, "plan") != derived_key(1, "scene") != derived_key(2, "scene")


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
    base = DataConfig(source="videos", path=str(folder), frames=8, frame_interval=(1, 2), clips=(2, 8), longest_side=64, min_side=32)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_bad_videos_are_named_counted_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(folder_config(folder), TINY)
    assert sorted(Path(error.path).name for error in source.skipped) == ["short.mp4", "small.mp4", "text.mp4", "wide.mp4"]
    reasons = {Path(error.path).name: error.reason for error in source.skipped}
    assert "too short: 5 frames" in reasons["short.mp4"] and "min_side" in reasons["small.mp4"] and "max_aspect" in reasons["wide.mp4"]
    assert "4 of 10 videos" in caplog.text
    assert all(str(error) in caplog.text for error in source.skipped)


def test_split_is_disjoint_and_by_name(folder: Path) -> None:
    source = open_source(folder_config(folder, validation_fraction=0.4), TINY)
    assert isinstance(source.train, FolderSplit) and isinstance(source.validation, FolderSplit)
    train, held_out = ({segment.info.path for segment in split.segments} for split in (source.train, source.validation))
    assert len(train | held_out) == 6 and not train & held_out and train and held_out
    assert len(open_source(folder_config(folder, validation_fraction=0.001), TINY).validation.segments) == 1  # type: ignore[attr-defined]
    assert len(open_source(folder_config(folder, validation_fraction=0.999), TINY).train.segments) == 1  # type: ignore[attr-defined]


def test_split_does_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    names = []
    for root in (folder, tmp_path / "copy"):
        source = open_source(folder_config(root), TINY)
        names.append([Path(segment.info.path).relative_to(root) for segment in source.validation.segments])  # type: ignore[attr-defined]
    assert names[0] == names[1]


def test_an_epoch_visits_each_video_by_its_length_in_another_order_each_time(folder: Path) -> None:
    split = open_source(folder_config(folder), TINY).train
    expected = Counter({i: max(1, segment.frames // 8) for i, segment in enumerate(split.segments)})  # type: ignore[attr-defined]
    orders = [[split.plan(0, epoch, i).item for i in range(len(split))] for epoch in (0, 1)]
    assert Counter(orders[0]) == Counter(orders[1]) == expected
    assert orders[0] != orders[1]
    assert orders[1] == [split.plan(0, 1, i).item for i in range(len(split))]


def test_lone_video_is_cut_in_time(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "v4.mp4", tmp_path / "alone.mp4")
    source = open_source(folder_config(tmp_path), TINY)
    train, validation = source.train.segments[0], source.validation.segments[0]  # type: ignore[attr-defined]
    assert (train.first, train.frames, validation.first, validation.frames) == (0, 56, 56, 14)
    assert "only one video" in source.notes[0]
    plans = [source.validation.plan(0, 0, 0) for _ in range(2)]
    assert plans[0] == plans[1] and source.validation.pixels(plans[0]).shape == (8, 48, 64, 3)


def test_physics_scenes_of_the_splits_and_epochs_differ() -> None:
    config = DataConfig(frames=2, frame_interval=(2, 4), clips=(1, 2), physics=PhysicsConfig(epoch_scenes=10))
    source = open_source(config, TINY)
    assert len(source.train) == 10
    plans = [split.plan(0, epoch, i) for split in (source.train, source.validation) for epoch in (0, 1) for i in range(10)]
    assert len({plan.key for plan in plans}) == 40
    videos = {source.train.pixels(plan).tobytes() for plan in plans}
    assert len(videos) == 40
    np.testing.assert_array_equal(source.train.pixels(plans[3]), source.train.pixels(source.train.plan(0, 0, 3)))


def test_latent_frames_become_video_frames() -> None:
    """With a temporal stride of 4, N latent frames take 1 + 4 (N - 1) frames."""
    source = open_source(DataConfig(frames=5, frame_interval=(1, 1), clips=(5, 5)), WAN)
    plan = source.train.plan(0, 0, 0)
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
        ({"frame_interval": (3, 2)}, "data.frame_interval"),
        ({"clips": (0, 2)}, "data.clips"),
        ({"clips": (9, 9)}, "data.clips"),
        ({"size_multiple": 12}, "data.size_multiple"),
        ({"longest_side": 72}, "data.longest_side"),
        ({"validation_fraction": 0.0}, "data.validation_fraction"),
    ],
)
def test_wrong_options_are_one_line(folder: Path, changes: dict, option: str) -> None:
    with pytest.raises(ValueError, match=option) as caught:
        open_source(folder_config(folder, **changes), TINY)
    assert "\n" not in str(caught.value)
