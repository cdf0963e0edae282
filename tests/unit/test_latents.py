"""Latents as members of shards: exact numbers, only the bytes that are needed, and every damage named."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.geometry import CodecGeometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.plans import SamplePlan
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.latents import (
    LONGEST_HEADER,
    STORED,
    LatentsJob,
    check_facts,
    facts_of,
    pack,
    parse_header,
    runs,
    to_stored,
)

BEFORE = b"tar header or so" * 32


@dataclass(frozen=True)
class Counting(Cache):
    """A cache that notes how many bytes were asked for."""

    asked: list[int] = field(default_factory=list)

    def read(self, url: str, offset: int, size: int) -> bytes:
        self.asked.append(size)
        return super().read(url, offset, size)


def latents(frames: int, channels: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = (torch.randn(frames, channels, height, width, generator=generator) * 3 for _ in range(2))
    return mean, logvar


def job(
    path: Path | str,
    data: bytes,
    frames: tuple[int, ...],
    total: int,
    channels: int = 3,
    size: tuple[int, int] = (16, 24),
    cache: Cache | None = None,
) -> LatentsJob:
    if isinstance(path, Path):
        path.write_bytes(BEFORE + data + b"next member")
    plan = SamplePlan(number=7, key=11, dataset=0, item=0, frames=frames, interval=2, clips=(len(frames),), size=size)
    return LatentsJob(
        plan, str(path), "clip", len(BEFORE), len(data), total, channels, 8, cache or Cache("/nowhere", 0)
    )


@given(
    frames=st.lists(st.integers(0, 19), min_size=1, max_size=20, unique=True).map(sorted),
    stored=st.sampled_from(list(STORED)),
    deterministic=st.booleans(),
    cut=st.integers(1, 19),
)
@settings(max_examples=60, deadline=None)
def test_the_frames_that_were_stored_come_back(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int], stored: str, deterministic: bool, cut: int
) -> None:
    """Bit for bit what torch's own conversion to the stored type gives, whatever the pieces in which
    they were encoded.
    """
    mean, logvar = latents(20, 3, 2, 3)
    pieces = [
        to_stored(mean[part], None if deterministic else logvar[part], stored)
        for part in (slice(0, cut), slice(cut, 20))
    ]
    sample = job(tmp_path_factory.getbasetemp() / "a.tar", pack(pieces), tuple(frames), 20).read()
    for found, original in ((sample.mean, mean), (sample.logvar, None if deterministic else logvar)):
        if original is None:
            assert found is None
            continue
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_array_equal(found, original[frames].to(STORED[stored]).float().numpy())
    assert (sample.key, sample.number, sample.clips, sample.pixels) == (11, 7, (len(frames),), None)
    assert sample.name == f"a.tar[clip][{frames[0]}::2]"


def test_only_the_frames_that_are_needed_are_read(tmp_path: Path) -> None:
    mean, logvar = latents(1000, 3, 2, 3)
    cache = Counting("/nowhere", 0)
    job(tmp_path / "a.tar", pack([to_stored(mean, logvar, "fp16")]), (3, 4, 5, 100, 999), 1000, cache=cache).read()
    frame = 2 * 3 * 2 * 3 * 2
    assert cache.asked == [LONGEST_HEADER, 3 * frame, frame, frame]


def test_a_remote_member_is_read_once(tmp_path: Path) -> None:
    mean, logvar = latents(30, 3, 2, 3)
    data = pack([to_stored(mean, logvar, "fp32")])
    fsspec.filesystem("memory").pipe("/latents/a.tar", BEFORE + data)
    cache = Counting(tmp_path / "cache", 10**7)
    tasks = [job("memory://latents/a.tar", data, frames, 30, cache=cache) for frames in ((0, 7), (29,))]
    np.testing.assert_array_equal(tasks[0].read().mean, mean[[0, 7]].numpy())
    fsspec.filesystem("memory").rm("/latents/a.tar")
    np.testing.assert_array_equal(tasks[1].read().logvar, logvar[[29]].numpy())  # type: ignore[arg-type]
    assert cache.asked == [len(data)] * 2


def test_members_that_do_not_fit_the_index_are_rejected(tmp_path: Path) -> None:
    mean, logvar = latents(10, 3, 2, 3)
    good = pack([to_stored(mean, logvar, "fp32")])
    three = mean[:, None].repeat(1, 3, 1, 1, 1)
    cases: list[tuple[str, bytes, dict]] = [
        ("codec", good, {"total": 11}),
        ("codec", good, {"channels": 4}),
        ("codec", good, {"size": (16, 32)}),
        ("codec", pack([torch.full((10, 3, 2, 3), torch.nan)]), {}),
        ("too_short", good, {"frames": (9, 10)}),
        ("truncated", good[:-1], {}),
        ("truncated", good[:5], {}),
        ("truncated", good[:40], {}),
        ("metadata", good + b"x", {}),
        ("metadata", save({"mean": mean, "logvar": logvar}), {}),
        ("metadata", save({"moments": three}), {}),
        ("metadata", save({"moments": three[:, :2].double()}), {}),
        ("metadata", struct.pack("<Q", 2**63) + good[8:], {}),
    ]
    for kind, data, changes in cases:
        with pytest.raises(BadVideo) as caught:
            job(tmp_path / "a.tar", data, **{"frames": (0,), "total": 10, **changes}).read()
        assert caught.value.kind == kind and "\n" not in str(caught.value), str(caught.value)
        assert caught.value.path == "a.tar[clip]"
    cut = job(tmp_path / "a.tar", good, (0, 9), 10)
    (tmp_path / "a.tar").write_bytes(BEFORE + good[:-8])
    gone = job(tmp_path / "b.tar", good, (0, 9), 10)
    (tmp_path / "b.tar").unlink()
    for lost, kind in ((cut, "truncated"), (gone, "missing")):
        with pytest.raises(BadVideo, match="clip") as caught:
            lost.read()
        assert caught.value.kind == kind


@given(place=st.integers(0, 150), value=st.integers(0, 255), length=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_damaged_headers_are_rejected_or_read_as_the_library_reads_them(place: int, value: int, length: int) -> None:
    mean, _ = latents(2, 1, 2, 3)
    data = bytearray(pack([to_stored(mean, None, "fp32")]))
    data[min(place, len(data) - 1)] = value
    data = data[:length] if length < 100 else data
    try:
        kind, dtype, shape, start = parse_header(bytes(data[:LONGEST_HEADER]), len(data), "x")
    except BadVideo:
        return
    (name, tensor), *rest = load(bytes(data)).items()
    assert (name, tuple(tensor.shape), rest) == (kind, shape, [])
    assert (
        start == 8 + struct.unpack("<Q", data[:8])[0]
        and tensor.dtype == {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    )


def test_hostile_headers() -> None:
    def member(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text

    entry = {"dtype": "F32", "shape": [1, 1, 1, 1], "data_offsets": [0, 4]}
    for header in (
        [],
        {},
        {"mean": []},
        {"mean": {**entry, "shape": [2**40, 1, 1, 1]}},
        {"mean": {**entry, "shape": [-1, -1, 1, 1]}},
        {"mean": {**entry, "shape": [True, 1, 1, 1]}},
        {"mean": {**entry, "shape": [1.0, 1, 1, 1]}},
        {"mean": {**entry, "data_offsets": [-4, 0]}},
        {"mean": {**entry, "data_offsets": [0, 8]}},
        {"mean": {**entry, "data_offsets": [4]}},
        {"mean": {**entry, "dtype": ["F32"]}},
        {"mean": entry, "logvar": entry},
        {"video": entry},
    ):
        data = member(header) + bytes(4)
        with pytest.raises(BadVideo) as caught:
            parse_header(data, len(data), "x")
        assert caught.value.kind == "metadata"
    deep = b"[" * 4000
    with pytest.raises(BadVideo):
        parse_header(struct.pack("<Q", len(deep)) + deep, 8 + len(deep), "x")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True).map(sorted))
def test_runs_are_the_frames_in_stretches(frames: list[int]) -> None:
    found = runs(tuple(frames))
    assert list(chain.from_iterable(range(first, first + count) for first, count in found)) == frames
    assert all(first + count < after for (first, count), (after, _) in zip(found, found[1:]))


def test_numbers_that_cannot_be_stored() -> None:
    mean, logvar = latents(2, 1, 2, 2)
    with pytest.raises(ValueError, match="finite.*--store=fp32"):
        to_stored(mean * 1e6, logvar, "fp16")
    with pytest.raises(ValueError, match="finite"):
        to_stored(mean / 0, logvar, "fp32")
    assert to_stored(mean * 1e6, logvar, "bf16").shape == (2, 2, 1, 2, 2)


def test_latents_of_another_vae_or_size_are_refused_in_one_line() -> None:
    codec = build_codec(CodecConfig())
    facts = facts_of(codec, 320, 16, "fp16")
    check_facts("lat", facts, DataConfig(), codec)
    check_facts("lat", facts, DataConfig(), CodecGeometry(codec.channels, 8, 1))
    wrong = [
        (
            {**facts, "fingerprint": "0123456789abcdef"},
            DataConfig(),
            codec,
            ["0123456789ab", codec.fingerprint[:12], "codec.path"],
        ),
        ({}, DataConfig(), codec, ["which VAE", "index.json"]),
        ({"codec": "tiny"}, DataConfig(), codec, ["longest_side=None", "longest_side=320"]),
        (facts, DataConfig(longest_side=128), codec, ["longest_side=320", "longest_side=128"]),
        (facts, DataConfig(size_multiple=32), codec, ["size_multiple=16", "size_multiple=32"]),
        (facts, DataConfig(), CodecGeometry(4, 8, 1), ["channels=16", "4"]),
        (facts, DataConfig(), CodecGeometry(16, 8, 4), ["temporal_stride=1", "4"]),
    ]
    for given_facts, config, vae, parts in wrong:
        with pytest.raises(ValueError, match="encode the videos again") as caught:
            check_facts("lat", given_facts, config, vae)
        assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in ["data.path=lat", *parts])
