"""Encoding latents: by any number of processes, interrupted and resumed, with bad videos, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import Rejections
from megatron_videogpt.data.prepare.encode import Encoding, Progress, claim_output, encode_parts, finish
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.sources.open import open_source, usable_videos
from megatron_videogpt.data.video.pictures import write_video
from tests.clips import BIRD, CINEPAK, ODD
from tests.data.vae import small_kl
from tests.parallel.launch import REPOSITORY, run, torchrun

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOOL = str(REPOSITORY / "tools" / "encode_latents.py")
SIZES = ["--longest-side", "64", "--min-side", "64", "--platform", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_kl(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos of 20..80 frames, of two shapes, one of them longer than a piece."""
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for i in range(7):
        base = rng.integers(0, 256, (1, 64, 96, 3) if i % 2 else (1, 96, 64, 3), dtype=np.uint8).repeat(20 + 10 * i, 0)
        for frame in range(len(base)):
            base[frame, : frame % 60] //= 2
        write_video(root / f"v{i}.mp4", base, 24)
    return root


class Watched:
    """A codec that counts what it encodes, and may fail or give bad numbers at some call."""

    def __init__(self, codec: Codec, fail: int = -1, nan: int = -1) -> None:
        self.codec, self.fail, self.nan, self.calls, self.frames = codec, fail, nan, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codec, name)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        if self.calls == self.fail:
            raise KeyboardInterrupt
        self.frames += len(video)
        mean, logvar = self.codec.encode(video)
        return (mean * torch.nan if self.calls == self.nan else mean), logvar


def encode(source: Path, output: Path, codec: Any, bad: float = 1.0, **options: Any) -> Progress:
    config = DataConfig(source="videos", longest_side=64, min_side=64)
    usable = usable_videos(config, codec, str(source), 1, sys.maxsize)
    # The smallest limit: every video ends its shard.
    encoding = Encoding(usable, codec, 64, 16, "fp16", 16, 4, 1, output, options)
    claim_output(encoding)
    with tqdm(disable=True) as bar:
        done = Progress(Rejections(bad), bar)
        encode_parts(encoding, range(len(encoding.parts)), 0, 60.0, done)
    finish(encoding)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_the_number_of_processes_changes_nothing(videos: Path, tmp_path: Path) -> None:
    """Real clips, by one process and by two under torchrun: the same bytes in every file."""
    (tmp_path / "raw").mkdir()
    for name in (ODD, BIRD, CINEPAK):
        shutil.copy(videos / name, tmp_path / "raw" / name)
    (tmp_path / "raw" / "text.mp4").write_text("not a video")
    common = [str(tmp_path / "raw"), "--codec", "tiny", "--part", "1", *SIZES, "--max-bad-fraction", "1"]
    alone = run([sys.executable, TOOL, *common, "--output", str(tmp_path / "one"), "--workers", "1"])
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert (
        "3 videos, 193 frames encoded" in alone.stdout
        and "rejected: 1 unreadable" in alone.stdout
        and "frames/s" in alone.stdout
    )
    together = torchrun(2, TOOL, *common, "--output", str(tmp_path / "two"), "--workers", "0")
    assert "3 videos, 193 frames encoded" in together.stdout
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two and sum(name.endswith(".tar") for name in one) == 3
    (rejected,) = (json.loads(line) for line in one["rejected.jsonl"].splitlines())
    assert rejected["kind"] == "unreadable" and rejected["name"].endswith("text.mp4")
    index = load_index(tmp_path / "two")
    assert index.kind == "latents" and index.facts["codec"] == "tiny" and index.entries["frames"].sum() == 193


@pytest.mark.parametrize("fail", [1, 3, 6, 7, 9])
def test_an_interrupted_encoding_goes_on(made: Path, tmp_path: Path, fail: int) -> None:
    """The codec is interrupted at call ``fail`` (9 calls encode all); the second run ends with the same bytes and
    repeats less than what was done.
    """
    codec = build_codec(CodecConfig())
    whole = Watched(codec)
    encode(made, tmp_path / "whole", whole)
    assert (whole.calls, whole.frames) == (9, 350)
    first, second = Watched(codec, fail=fail), Watched(codec)
    with pytest.raises(KeyboardInterrupt):
        encode(made, tmp_path / "cut", first)
    finished = len(list((tmp_path / "cut").glob("*.tar")))
    encode(made, tmp_path / "cut", second)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    # The two longest take two calls each.  A shard is whole when the next video comes, or when the part of 4 videos
    # ends: of those done, one may come again.
    done = [0, 1, 2, 3, 4, 5, 5, 6, 6][fail - 1]
    assert done - 1 <= finished <= done and second.frames == sum(20 + 10 * i for i in range(finished, 7))
    third = Watched(codec)
    encode(made, tmp_path / "cut", third)
    assert third.calls == 0 and contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("nan", "kept"), [(1, True), (2, False)])
def test_rejections_before_the_last_whole_shard_are_kept_and_later_ones_tried_again(
    made: Path, tmp_path: Path, nan: int, kept: bool
) -> None:
    """Interrupted at the fourth video: the shard of the last but one good video is whole, and resuming starts behind
    it.
    """
    codec = build_codec(CodecConfig())
    with pytest.raises(KeyboardInterrupt):
        encode(made, tmp_path / "out", Watched(codec, fail=4, nan=nan))
    encode(made, tmp_path / "out", codec)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(line["name"]).name, line["kind"]) for line in lines] == ([("v0.mp4", "codec")] if kept else [])
    index = load_index(tmp_path / "out")
    assert [index.key(i) for i in range(len(index))] == [f"v{i}" for i in range(kept, 7)]


def test_what_cannot_be_encoded_is_left_out_and_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for i in range(4):
        shutil.copy(made / f"v{i}.mp4", tmp_path / "raw" / f"v{i}.mp4")
    write_video(tmp_path / "raw" / "small.mp4", np.zeros((9, 32, 64, 3), np.uint8), 24)
    codec = build_codec(CodecConfig())
    done = encode(tmp_path / "raw", tmp_path / "out", Watched(codec, nan=2))
    assert (done.videos, done.frames, done.rejections.counts) == (3, 20 + 40 + 50, {"codec": 1})
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(line["name"]).name, line["kind"]) for line in lines] == [
        ("small.mp4", "too_small"),
        ("v1.mp4", "codec"),
    ]
    assert "--dtype" in lines[1]["reason"]
    index = load_index(tmp_path / "out")
    assert [index.key(i) for i in range(len(index))] == ["v0", "v2", "v3"]
    with pytest.raises(ValueError, match="max_bad_fraction"):
        encode(tmp_path / "raw", tmp_path / "strict", Watched(codec, nan=2), bad=0.0)


def test_a_folder_of_other_latents_is_left_alone(made: Path, tmp_path: Path) -> None:
    codec = build_codec(CodecConfig())
    encode(made, tmp_path / "out", codec, min_side=64)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="min_side=64, not 128") as caught:
        encode(made, tmp_path / "out", codec, min_side=128)
    assert "\n" not in str(caught.value) and contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        encode(made, tmp_path / "mine", codec)


def test_latents_that_an_earlier_release_began_are_finished(made: Path, kl: Path, tmp_path: Path) -> None:
    """Its fingerprint covered a copy that is not read; all shards then say what the first ones do."""
    folder = Path(shutil.copytree(kl, tmp_path / "vae"))
    shutil.copy(folder / WEIGHTS, folder / "diffusion_pytorch_model.fp16.safetensors")
    codec, out = build_codec(CodecConfig("autoencoder_kl", str(folder))), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        encode(made, out, Watched(codec, fail=8))
    settings = {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key[0] != "_"}
    text = json.dumps(settings, sort_keys=True).encode()
    before = hashlib.sha256(text + 2 * (folder / WEIGHTS).read_bytes()).hexdigest()
    shards = list(out.glob("*.json"))
    assert len(shards) > 1
    for path in shards:
        path.write_text(path.read_text().replace(codec.fingerprint, before))
    encode(made, out, codec)
    assert load_index(out).facts["fingerprint"] == before and len(list(out.glob("*.tar"))) == 7
    config = DataConfig(source="shards", path=str(out), frames=4, clips=(1, 4), longest_side=64, min_side=64)
    assert len(open_source(config, codec).train) > 0
    other = build_codec(CodecConfig("autoencoder_kl", str(kl)))
    with pytest.raises(ValueError, match="--output.*another command"):
        encode(made, out, other)


def test_training_refuses_latents_of_another_vae(made: Path, kl: Path, tmp_path: Path) -> None:
    """Two VAEs of one shape and different weights: one line that names both."""
    codec = build_codec(CodecConfig("autoencoder_kl", str(kl)))
    other = build_codec(CodecConfig("autoencoder_kl", str(small_kl(tmp_path / "other", seed=1))))
    encode(made, tmp_path / "out", codec)
    config = DataConfig(
        source="shards", path=str(tmp_path / "out"), frames=4, clips=(1, 4), longest_side=64, min_side=64
    )
    assert len(open_source(config, codec).train) > 0
    with pytest.raises(ValueError, match="codec.path") as caught:
        open_source(config, other)
    text = str(caught.value)
    assert "\n" not in text and codec.fingerprint[:12] in text and other.fingerprint[:12] in text


def test_a_vae_that_joins_frames_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(tmp_path)
    for arguments, reason in (
        (["--codec", "autoencoder_kl_wan", "--codec-path", str(tmp_path)], "joins 4 frames"),
        (["--codec", "tiny", "--size-multiple", "12"], "--size-multiple=12"),
        (["--codec", "autoencoder_kl"], "codec.path is empty"),
    ):
        assert main(["data", "encode", str(made), "--output", str(tmp_path / "out"), *SIZES, *arguments]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
