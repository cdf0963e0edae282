"""Files as UCF-101's are (AVI, MPEG-4 with packed B-frames) and as television and camcorders write them (H.264 fields):
trained on, put into shards, encoded and continued, and not one bad sample.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from tqdm import tqdm

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import Config, SampleConfig, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import Rejections
from megatron_videogpt.data.prepare.encode import Encoding, Progress, claim_output, encode_parts, finish
from megatron_videogpt.data.prepare.run import prepare
from megatron_videogpt.data.prepare.video import Options
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.sources.open import open_source, usable_videos
from megatron_videogpt.sample.prompts import Source, read_prompt
from tests.loading import loader_of
from tests.numbered import number_of
from tests.unit.test_odd_files import EXPECTED, ODD
from tests.unit.test_prompts import Unshuffle

CODEC = build_codec(CodecConfig())
COPIES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("odd")
    for number in range(COPIES):
        (place / f"Class{number % 2}").mkdir(exist_ok=True)
        shutil.copyfile(ODD / "xvid_b.avi", place / f"Class{number % 2}" / f"v_{number}.avi")
        shutil.copyfile(ODD / "paff.ts", place / f"Class{number % 2}" / f"f_{number}.ts")
    return place


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "out"
    report, _ = prepare(Options((str(folder),), min_side=32), output, 0, 60.0)
    assert (report.videos, report.frames, report.rejected) == (2 * COPIES, COPIES * (98 + 30), {})
    return output


@pytest.mark.parametrize("source", ["videos", "shards"])
def test_training_reads_every_sample(source: str, folder: Path, shards: Path, tmp_path: Path) -> None:
    """Each sample's pixels are those frames that its name promises."""
    data = DataConfig(
        source=source,
        path=str(folder if source == "videos" else shards),
        cache=str(tmp_path),
        frames=4,
        frame_interval=(1, 3),
        clips=(1, 4),
        longest_side=64,
        min_side=32,
        workers=0,
    )
    config = Config(data=data, train=TrainConfig(global_batch_size=4, micro_batch_size=1, seed=3))
    loader = loader_of(open_source(data, CODEC), Numbers(), config)
    samples = [sample for _ in range(10) for row in next(loader) for sample in row.samples if sample.number >= 0]
    assert not loader.rejections.total and len(samples) == 40
    loader.close()
    kinds = set()
    for sample in samples:
        name, _, place = sample.name.removesuffix("]").rpartition("[")
        first, interval = (int(part) for part in place.split("::"))
        expected = EXPECTED["xvid_b.avi" if "v_" in name else "paff.ts"]
        wanted = [expected[first + interval * n] for n in range(4)]
        assert sample.mean[:, 0, 0, 0].tolist() == wanted, sample.name
        kinds.add(name[-5:])
    assert len(kinds) >= 2


class Numbers:
    """A codec whose latents are the numbers that the pictures carry."""

    device = CODEC.device

    def __getattr__(self, name: str) -> object:
        return getattr(CODEC, name)

    def encode(self, video: Tensor) -> tuple[Tensor, None]:
        """[F, channels, h, w] of the frames' numbers."""
        pixels = ((video + 1) * 127.5).permute(0, 2, 3, 1).round().byte().numpy()
        numbers = Tensor([number_of(picture, 4) for picture in pixels])
        stride = CODEC.spatial_stride
        shape = (len(video), CODEC.channels, video.shape[2] // stride, video.shape[3] // stride)
        return numbers[:, None, None, None].expand(shape).contiguous(), None


def test_all_frames_are_encoded(shards: Path, tmp_path: Path) -> None:
    data = DataConfig(source="shards", path=str(shards), min_side=32, longest_side=64)
    usable = usable_videos(data, CODEC, str(shards), 1, 10)
    encoding = Encoding(usable, CODEC, 64, 16, "fp32", 16, 4, 10**9, tmp_path / "latents", {})
    claim_output(encoding)
    with tqdm(disable=True) as bar:
        done = Progress(Rejections(0.0), bar)
        encode_parts(encoding, range(len(encoding.parts)), 0, 60.0, done)
    assert not finish(encoding) and done.frames == COPIES * (98 + 30)
    assert sorted(set(load_index(tmp_path / "latents").entries["frames"].tolist())) == [30, 98]


def test_such_a_file_is_continued() -> None:
    settings = SampleConfig(history=3, clips=(2,), window=5)
    config = Config(data=DataConfig(longest_side=64, size_multiple=16), sample=settings)
    prompt = read_prompt(Source("x", ODD / "xvid_b.avi"), config, Unshuffle())
    assert prompt.truth is not None and prompt.fps == 25
    frames = np.concatenate([prompt.condition, prompt.truth])
    assert [number_of(frame, 4) for frame in frames] == EXPECTED["xvid_b.avi"][-5:]
