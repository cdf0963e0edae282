"""Frames encoded call by call: the calls of a video, who makes them, and the same bits whoever does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.codec.base import Codec, call_size
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.codec.sharing import shares_encoding, who_encodes
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config, ParallelConfig, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.encoding import (
    calls_of,
    deal_calls,
    encode_calls,
    is_encoded,
    join_calls,
    pack_frames,
)
from megatron_videogpt.data.loader import HeldOut
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.video.pictures import to_model_range
from tests.data.vae import small_kl
from tests.loading import loader_of

SIZES = [(1, 16, 16), (5, 16, 24), (9, 32, 16), (17, 16, 16)]
DATA = DataConfig(
    frames=5, frame_interval=(1, 2), clips=(1, 4), workers=0, physics=PhysicsConfig(size=32, epoch_scenes=10)
)


@pytest.fixture(scope="module")
def codec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Codec]:
    """By name; calls of at most 4 frames."""
    folder = small_kl(tmp_path_factory.mktemp("vae"))

    def build(name: str) -> Codec:
        return build_codec(CodecConfig(name=name, path=str(folder), batch_size=4))

    return build


def videos_of(sizes: list[tuple[int, int, int]]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize(
    ("frames", "calls"),
    [(1, [1]), (4, [4]), (5, [3, 2]), (7, [4, 3]), (9, [3, 3, 3]), (16, [4] * 4), (17, [4, 4, 4, 4, 1])],
)
def test_calls_of_a_video_are_alike(codec_of: Callable[[str], Codec], frames: int, calls: list[int]) -> None:
    """As few as possible, each of the same size, the last one padded."""
    found = calls_of([(frames, 16, 24)], codec_of("tiny"))
    assert [call.frames for call in found] == calls and {call.size for call in found} == {calls[0]}
    assert [call.first for call in found] == [sum(calls[:n]) for n in range(len(calls))]
    assert [call.shape for call in found] == [(count, 16, 2, 3) for count in calls]


def test_temporal_codecs_take_whole_videos(codec_of: Callable[[str], Codec]) -> None:
    codec = codec_of("tiny_fsq")
    assert [(call.frames, call.size, call.shape) for call in calls_of(SIZES, codec)] == [
        (1, 1, (1, 4, 2, 2)),
        (5, 5, (2, 4, 2, 3)),
        (9, 9, (3, 4, 4, 2)),
        (17, 17, (5, 4, 2, 2)),
    ]


@pytest.mark.parametrize("name", ["tiny", "autoencoder_kl", "tiny_fsq", "pixels"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
def test_latents_are_those_of_the_codec_alone(codec_of: Callable[[str], Codec], name: str, ranks: int) -> None:
    """To the bit, with the work on any number of ranks, some of which may have none."""
    codec, videos = codec_of(name), videos_of(SIZES)
    shares = deal_calls(calls_of(SIZES, codec), ranks)
    made = [pair for share in shares for pair in zip(share, encode_calls(share, pack_frames(share, videos), codec))]
    for video, latents in zip(videos, join_calls(made, len(videos)), strict=True):
        alone = [part for part in codec.encode(to_model_range(video)) if part is not None]
        assert len(latents) == len(alone) == 1 + (name == "autoencoder_kl")
        assert all(torch.equal(one, other) for one, other in zip(latents, alone, strict=True))


def test_calls_are_the_network_s_own(codec_of: Callable[[str], Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks see the same inputs, not only give alike outputs."""
    codec: Any = codec_of("autoencoder_kl")
    seen: list[torch.Tensor] = []
    real = codec.model.encode

    def watched(frames: torch.Tensor) -> Any:
        seen.append(frames.clone())
        return real(frames)

    monkeypatch.setattr(codec.model, "encode", watched)
    (video,) = videos_of([(9, 16, 16)])
    codec.encode(to_model_range(video))
    alone, calls = seen[:], calls_of([video.shape[:3]], codec)
    seen.clear()
    encode_calls(calls, pack_frames(calls, [video]), codec)
    assert [len(frames) for frames in seen] == [3, 3, 3]
    assert all(torch.equal(one, other) for one, other in zip(seen, alone, strict=True))
    assert call_size(codec, 9) == 3


def test_the_largest_calls_go_first(codec_of: Callable[[str], Codec]) -> None:
    """Nobody has more than the largest call above the mean, and the shares are the same everywhere."""
    calls = calls_of([(8, 16, 16), (8, 64, 64), (4, 32, 32)], codec_of("tiny"))
    shares = deal_calls(calls, 2)
    loads = [sum(call.pixels for call in share) for share in shares]
    assert loads == [4 * 64 * 64 + 4 * 32 * 32, 4 * 64 * 64 + 2 * 4 * 16 * 16]
    assert sorted((call.video, call.first) for share in shares for call in share) == [
        (call.video, call.first) for call in calls
    ]
    assert deal_calls([], 3) == [[], [], []]


def test_a_codec_that_gives_another_shape_is_named(codec_of: Callable[[str], Codec]) -> None:
    codec: Any = codec_of("tiny")
    calls = calls_of([(2, 16, 16)], codec)
    wrong = [replace(call, shape=(2, 16, 3, 3)) for call in calls]
    told = re.escape("codec tiny: 2 frames of 16x16 give [2, 16, 2, 2], expected [2, 16, 3, 3]")
    with pytest.raises(ValueError, match=told):
        encode_calls(wrong, torch.zeros(2 * 16 * 16 * 3, dtype=torch.uint8), codec)


@pytest.mark.parametrize("workers", [0, 1])
def test_readers_may_leave_frames_as_they_are(codec_of: Callable[[str], Codec], workers: int) -> None:
    codec, config = (
        codec_of("tiny"),
        Config(data=replace(DATA, workers=workers), train=TrainConfig(global_batch_size=3)),
    )
    source = open_source(config.data, codec)
    both = []
    for encodes in (True, False):
        loader = loader_of(source, codec, config, encodes=encodes)
        both.append([sample for row in next(loader) for sample in row.samples])
        loader.close()
    for one, other in zip(*both, strict=True):
        assert is_encoded(one) and one.pixels is None and one.encode_time > 0
        assert not is_encoded(other) and other.pixels.shape == (5, 32, 32, 3) and other.encode_time == 0
        assert torch.equal(codec.encode(to_model_range(other.pixels))[0], one.mean) and other.number == one.number


def test_frames_that_the_index_does_not_promise(
    codec_of: Callable[[str], Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a bad sample before anybody encodes them."""
    codec, config = codec_of("tiny"), Config(data=DATA)
    with HeldOut(open_source(DATA, codec), codec, config, encodes=False) as held:
        assert not held.read([0]) and not is_encoded(held.samples[0])
        real = held._reading.pool.wait
        monkeypatch.setattr(
            held._reading.pool, "wait", lambda number: (lambda one: replace(one, pixels=one.pixels[:3]))(real(number))
        )
        found = held.read([1])
    assert isinstance(found[1], BadVideo) and "gives latents [3, 16, 4, 4], but by the index [5, 16, 4, 4]" in str(
        found[1]
    )


@pytest.mark.parametrize(
    ("codec", "asked", "ranks", "expected"),
    [
        ("autoencoder_kl", "auto", (1, 1, 1), False),
        ("autoencoder_kl", "auto", (2, 1, 1), True),
        ("autoencoder_kl_wan", "auto", (1, 2, 1), True),
        ("fsq", "auto", (1, 1, 2), True),
        ("autoencoder_kl", "off", (2, 2, 1), False),
        ("autoencoder_kl", "on", (1, 1, 1), False),
        ("tiny", "auto", (2, 1, 1), False),
        ("tiny_fsq", "auto", (2, 1, 1), False),
        ("pixels", "auto", (2, 1, 1), False),
        ("tiny", "on", (2, 1, 1), True),
    ],
)
def test_who_encodes(codec: str, asked: str, ranks: tuple[int, int, int], expected: bool) -> None:
    sizes: dict[str, Any] = dict(zip(("tensor", "context", "pipeline"), ranks))
    config = config_from_dict({"codec": {"name": codec}, "data": {"share_encoding": asked}, "parallel": sizes})
    assert config.parallel == ParallelConfig(**sizes) and shares_encoding(config) == expected
    count = sizes["tensor"] * sizes["context"] * sizes["pipeline"]
    one = "each rank" if count == 1 else f"the reading one of {count} ranks"
    assert who_encodes(config) == (f"all {count} ranks of a replica" if expected else one)


def test_check_says_who_encodes(tmp_path: Path) -> None:
    from rich.console import Console

    from megatron_videogpt.plan.report import print_report

    config = config_from_dict({"codec": {"name": "autoencoder_kl", "path": str(tmp_path)}, "parallel": {"tensor": 2}})
    with (tmp_path / "report").open("w+", encoding="utf-8") as file:
        print_report(replace(config, codec=replace(config.codec, path="")), 2, console=Console(file=file, width=200))
        file.seek(0)
        line = next(line for line in file if "frames encoded by" in line)
    assert "all 2 ranks of a replica (data.share_encoding=auto)" in line
