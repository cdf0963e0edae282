"""Shard data sets from their index alone: who is held out, what is planned, what is left out; hashes of keys."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.codec.geometry import CodecGeometry
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.jobs import MemberJob
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.index import Index
from megatron_videogpt.data.shards.scan import ENTRY
from megatron_videogpt.data.sources.datasets import hash_strings, source_sizes
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.splits import VideoSplit

TINY = CodecGeometry(16, 8, 1)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_strings_are_hashed_as_by_their_definition(strings: list[str]) -> None:
    """FNV-1a byte by byte in Python's integers, then splitmix64's output function; a trailing _digits is cut by a plain
    string method.
    """

    def plain(data: bytes) -> int:
        h = 0xCBF29CE484222325
        for byte in data:
            h = (h ^ byte) * 0x100000001B3 % 2**64
        h = (h + 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ h >> 27) * 0x94D049BB133111EB % 2**64
        return h ^ h >> 31

    def source(data: bytes) -> bytes:
        head, _, tail = data.rpartition(b"_")
        return head if head and tail and all(b"0" <= tail[i : i + 1] <= b"9" for i in range(len(tail))) else data

    encoded = [string.encode() for string in strings] + [b"clip_0003", b"a_b_12", b"_12", b"12", b"x_", b"UCF_g01_c02"]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    sizes = np.array([len(data) for data in encoded])
    starts = np.cumsum(sizes) - sizes
    assert hash_strings(text, starts, sizes).tolist() == [plain(data) for data in encoded]
    assert source_sizes(text, starts, sizes).tolist() == [len(source(data)) for data in encoded]


def test_hashes_are_uniform() -> None:
    """Of 20,000 keys, each of 16 parts of the range holds a sixteenth, within five standard deviations."""
    encoded = [f"clip{i:05d}".encode() for i in range(20_000)]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    hashes = hash_strings(text, np.arange(20_000) * 9, np.full(20_000, 9))
    parts = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert np.abs(parts - 1250).max() < 5 * math.sqrt(1250 * 15 / 16) and len(np.unique(hashes)) == 20_000


def shard_source(
    keys: list[str], url: str = "/somewhere", **changes: object
) -> tuple[VideoSplit, VideoSplit, np.ndarray]:
    """Training, validation and index rows of a shard data set that exists as an index only."""
    encoded = [key.encode() for key in keys]
    entries = np.zeros(len(keys), ENTRY)
    entries["key_size"] = [len(key) for key in encoded]
    entries["key_start"] = np.cumsum(entries["key_size"]) - entries["key_size"]
    for name, value in (("width", 320), ("height", 240), ("frames", 40), ("size", 1000), ("fps", 24)):
        entries[name] = value
    index = Index(
        url,
        "videos",
        (("shard-000000.tar", 10**6),),
        {},
        entries,
        np.frombuffer(b"".join(encoded), np.uint8),
        "f",
        (),
        Cache("/nowhere", 0),
    )
    config = DataConfig(source="shards", path=url, frames=8, frame_interval=(1, 2), clips=(1, 8), **changes)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_videogpt.data.sources.datasets.open_index", lambda *_: index)
        source = open_source(config, TINY)
    assert isinstance(source.train, VideoSplit) and isinstance(source.validation, VideoSplit)
    return source.train, source.validation, entries


def test_clips_of_one_source_video_stay_together() -> None:
    """4,000 sources of five clips: about a twentieth of them is held out (five standard deviations), whole."""
    train, held_out, _ = shard_source([f"v{i // 5:07x}_{i % 5:04d}" for i in range(20_000)])
    sources = [set((split.items // 5).tolist()) for split in (train, held_out)]
    assert not sources[0] & sources[1] and len(sources[0] | sources[1]) == 4000
    assert abs(len(sources[1]) - 200) < 5 * math.sqrt(4000 * 0.05 * 0.95)


def test_numbers_that_name_no_source_are_part_of_the_key() -> None:
    train, held_out, _ = shard_source([f"clip_{i:06d}" for i in range(20_000)])
    assert len(train.items) + len(held_out.items) == 20_000 and abs(len(held_out.items) - 1000) < 5 * math.sqrt(
        20_000 * 0.05 * 0.95
    )
    few = shard_source(["clip_1", "clip_2"])
    assert len(few[0].items) == len(few[1].items) == 1
    alike = shard_source(["video"] * 10)
    assert sorted([*alike[0].items, *alike[1].items]) == list(range(10)) and 1 <= len(alike[1].items) < 5


def test_shards_are_planned_from_the_index_alone() -> None:
    keys = [f"k{i:04d}" for i in range(300)]
    here, there = (shard_source(keys, url)[0] for url in ("/here", "s3://bucket/there"))
    assert here.fingerprint == there.fingerprint and all(
        here.plans(1, range(50))[i] == there.plans(1, range(50))[i] for i in range(50)
    )
    plan = there.plans(1, [17])[0]
    job = there.job(plan)
    assert (
        isinstance(job, MemberJob)
        and job.url == "s3://bucket/there/shard-000000.tar"
        and job.key == keys[there.items[plan.item]]
    )
    assert job.label == f"shard-000000.tar[{job.key}][{plan.frames[0]}::{plan.interval}]"
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301


def test_the_many_that_are_left_out_are_counted_and_a_few_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match="none of 5000 videos can be used; the first: shard-000000.tar\\[k0000\\]: too small"
    ):
        shard_source([f"k{i:04d}" for i in range(5000)], min_side=241)
    assert len(caplog.records) == 21 and "5000 of 5000 videos in /somewhere skipped: 5000 too_small" in caplog.text
