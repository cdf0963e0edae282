"""Real clips through every kind of data set: a raw folder, video shards and latent shards give the same frames and the
same samples.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import Rejections
from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.jobs import FileJob, MemberJob, reading_of
from megatron_videogpt.data.plans import Plans
from megatron_videogpt.data.prepare.encode import Encoding, Progress, claim_output, encode_parts, finish
from megatron_videogpt.data.shards.latents import LatentsJob
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index
from megatron_videogpt.data.sources.open import open_source, usable_videos
from megatron_videogpt.data.splits import VideoSplit
from megatron_videogpt.data.video.pictures import resize_frames, to_model_range
from tests.clips import BIRD, CINEPAK, ODD, SMALL, SOUND, TALL
from tests.data.vae import small_kl
from tests.loading import loader_of

CLIPS = (SMALL, TALL, BIRD, CINEPAK, ODD, SOUND)
CONFIG = DataConfig(
    frames=9, frame_interval=(1, 4), clips=(1, 9), longest_side=64, min_side=64, validation_fraction=0.2, workers=0
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """Six real clips as a folder and as two shards."""
    root = tmp_path_factory.mktemp("sets")
    (root / "raw").mkdir()
    writer = ShardWriter(root / "shards", "videos", shard_count=4)
    for i, name in enumerate(CLIPS):
        shutil.copy(videos / name, root / "raw" / name)
        key, _, suffix = name.partition(".")
        info = probe(videos / name)
        meta = {
            "width": info.width,
            "height": info.height,
            "frames": info.frames,
            "fps": info.fps,
            "caption": f"clip {i}",
        }
        writer.add(key, {suffix: (videos / name).read_bytes()}, meta, position=i)
    writer.close()
    merge_index(root / "shards", "videos")
    return root


@pytest.fixture(scope="module", params=["tiny", "autoencoder_kl"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    path = "" if request.param == "tiny" else str(small_kl(tmp_path_factory.mktemp("kl")))
    return build_codec(CodecConfig(request.param, path))


def config(root: Path, kind: str) -> DataConfig:
    return replace(
        CONFIG, source="videos" if kind == "raw" else "shards", path=str(root / kind), cache=str(root / "cache")
    )


def splits(root: Path, kind: str, codec: Codec) -> tuple[VideoSplit, VideoSplit]:
    source = open_source(config(root, kind), codec)
    assert isinstance(source.train, VideoSplit) and isinstance(source.validation, VideoSplit)
    assert not source.left_out
    return source.train, source.validation


def same(left: Plans, right: Plans) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in left.__dataclass_fields__)


def encode(root: Path, kind: str, output: Path, codec: Codec) -> None:
    usable = usable_videos(config(root, kind), codec, str(root / kind), 1, 20)
    encoding = Encoding(usable, codec, 64, 16, "fp32", 16, 4, 10**9, output, {})
    claim_output(encoding)
    with tqdm(disable=True) as bar:
        done = Progress(Rejections(0.0), bar)
        encode_parts(encoding, range(len(encoding.parts)), 0, 60.0, done)
    assert not finish(encoding) and done.videos == len(CLIPS)


@pytest.fixture(scope="module")
def latents(root: Path, codec: Codec) -> str:
    """The shards' videos as latents in float32; the folder's name below root."""
    name = f"latents-{codec.name}"
    encode(root, "shards", root / name, codec)
    return name


def test_folder_and_shards_give_the_same_frames(root: Path) -> None:
    """Bit for bit, for samples of both splits, and equal to a plain decode and resize of the file."""
    codec = build_codec(CodecConfig())
    seen = set()
    for split in splits(root, "shards", codec):
        plans = split.plans(0, range(12))
        for i in range(len(plans)):
            member = split.job(plans[i])
            assert isinstance(member, MemberJob)
            path = next(path for path in (root / "raw").iterdir() if path.stem == member.key)
            sample, raw = member.read(), FileJob(member.plan, str(path), reading_of(CONFIG)).read()
            assert sample.pixels is not None and raw.pixels is not None
            np.testing.assert_array_equal(sample.pixels, raw.pixels)
            np.testing.assert_array_equal(sample.pixels, resize_frames(read_frames(path, member.plan.frames), 64, 16))
            assert (
                sample.clips == raw.clips == plans[i].clips
                and sample.number == i
                and sample.pixels.shape[1:3] == plans[i].size
            )
            seen.add(member.key)
    assert seen == {name.partition(".")[0] for name in CLIPS}


def test_folder_and_shards_index_the_same_videos(root: Path) -> None:
    codec = build_codec(CodecConfig())
    found = []
    for kind in ("raw", "shards"):
        usable = usable_videos(config(root, kind), codec, str(root / kind), 1, 20)
        rows = usable.collection.entries[usable.items]
        names = [Path(usable.collection.name(i).rpartition("[")[2].rstrip("]")).stem for i in usable.items.tolist()]
        found.append(
            {
                name: tuple(row[field].item() for field in ("width", "height", "frames", "fps"))
                for name, row in zip(names, rows)
            }
        )
    assert found[0] == found[1] and len(found[0]) == len(CLIPS)


def test_latents_are_those_of_encoding_on_the_fly(root: Path, codec: Codec, latents: str) -> None:
    """The same plans as from the video shards, and the codec's own output for their frames.

    The tool encodes runs of 16 frames and a sample has 9 of them, at other places in the batch: convolutions over other
    batches add up in another order, which moves float32 results of size 1 by some 1e-6 (5e-7 was seen, 2e-5 is
    allowed).  A frame that is off by one is off by more than 1e-2.
    """
    worst = 0.0
    for stored, videos in zip(splits(root, latents, codec), splits(root, "shards", codec)):
        assert same(stored.plans(0, range(40)), videos.plans(0, range(40)))
        for plan in (videos.plans(0, [i])[0] for i in range(8)):
            job, video = stored.job(plan), videos.job(plan)
            assert isinstance(job, LatentsJob) and isinstance(video, MemberJob) and job.key == video.key
            sample, pixels = job.read(), video.read().pixels
            assert (
                pixels is not None
                and sample.pixels is None
                and (sample.key, sample.clips, sample.number) == (plan.key, plan.clips, plan.number)
            )
            mean, logvar = codec.encode(to_model_range(pixels))
            pairs = [(sample.mean, mean)] if logvar is None else [(sample.mean, mean), (sample.logvar, logvar)]
            assert (sample.logvar is None) == (logvar is None)
            for found, expected in pairs:
                worst = max(worst, float((torch.as_tensor(found) - expected).abs().max()))
                # The comparison can tell frames apart.
                assert (torch.as_tensor(found) - expected.roll(1, 0)).abs().max() > 1e-2
    assert worst < 2e-5


def test_latents_of_a_folder_keep_names_and_sizes(root: Path, tmp_path: Path) -> None:
    codec = build_codec(CodecConfig())
    encode(root, "raw", tmp_path / "latents", codec)
    train, validation = splits(tmp_path, "latents", codec)
    index = train.collection.index  # type: ignore[attr-defined]
    assert sorted(index.key(i) for i in range(len(index))) == sorted(name.partition(".")[0] for name in CLIPS)
    for i in range(len(index)):
        meta, info = index.meta(i), probe(root / "raw" / index.meta(i)["source"])
        assert (meta["width"], meta["height"], meta["frames"], meta["fps"]) == (
            info.width,
            info.height,
            info.frames,
            pytest.approx(info.fps, abs=1e-3),
        )
    assert len(train.items) + len(validation.items) == len(CLIPS)


def test_captions_travel_with_latents(root: Path, codec: Codec, latents: str) -> None:
    index = splits(root, latents, codec)[0].collection.index  # type: ignore[attr-defined]
    assert {index.key(i): index.meta(i)["caption"] for i in range(len(index))} == {
        name.partition(".")[0]: f"clip {i}" for i, name in enumerate(CLIPS)
    }


def test_the_loader_gives_the_same_from_videos_and_latents_and_mixes_them(
    root: Path, codec: Codec, latents: str
) -> None:
    """Three steps from each; tolerance as above.  The first data set of a mixture gives the samples that it gives
    alone, the others have keys of their own.
    """
    steps = {}
    for kind in ("shards", latents, "both"):
        mixture = {str(root / "shards"): 0.5, str(root / latents): 0.5} if kind == "both" else {}
        data = replace(config(root, kind), mixture=mixture, workers=1 if mixture else 0)
        loader = loader_of(open_source(data, codec), codec, Config(data=data, train=TrainConfig(global_batch_size=4)))
        steps[kind] = [sample for _ in range(3) for batch in next(loader) for sample in batch.samples]
        assert loader.rejections.total == 0
        loader.close()
    for video, stored in zip(steps["shards"], steps[latents]):
        assert (video.key, video.number, video.clips, video.scored) == (stored.key, stored.number, stored.clips, True)
        assert video.name.partition("[")[2] == stored.name.partition("[")[2]
        torch.testing.assert_close(video.mean, stored.mean, atol=2e-5, rtol=0)
        assert (video.logvar is None) == (stored.logvar is None)
        if video.logvar is not None and stored.logvar is not None:
            torch.testing.assert_close(video.logvar, stored.logvar, atol=2e-5, rtol=0)
    assert [sample.number for sample in steps["both"]] == list(range(12))
    kinds = [sample.name.partition("-")[0] for sample in steps["both"]]
    assert sorted(kinds) == ["latents"] * 6 + ["shard"] * 6
    for sample, alone in zip(
        [sample for sample, kind in zip(steps["both"], kinds) if kind == "shard"], steps["shards"]
    ):
        assert (sample.key, sample.name, sample.clips) == (alone.key, alone.name, alone.clips) and torch.equal(
            sample.mean, alone.mean
        )
    assert len({sample.key for sample in steps["both"]}) == 12
