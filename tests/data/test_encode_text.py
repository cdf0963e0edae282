"""Text features computed once: what the tool writes, with any number of processes and interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch import Tensor
from tqdm import tqdm

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.condition.base import TextEncoder
from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.prepare.texts import Done, TextEncoding, claim, default_output, encode_shards, finish
from megatron_videogpt.data.sources.datasets import open_shards
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.errors import UserError
from tests.data.encoded import LONGEST, contents, encode, options_of, text_sets
from tests.data.told import TOLD, Told, data_of, told_shards
from tests.parallel.launch import REPOSITORY, run, torchrun

TOOL = str(REPOSITORY / "tools" / "encode_text.py")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return build_codec(CodecConfig())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_sets(tmp_path_factory.mktemp("features"))


class Watched:
    """An encoder that notes its calls, and kills its process at one."""

    def __init__(self, encoder: TextEncoder, fail: int = -1) -> None:
        self.encoder, self.fail, self.calls, self.texts = encoder, fail, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, texts: list[str]) -> list[Tensor]:
        self.calls += 1
        if self.calls == self.fail:
            os.kill(os.getpid(), signal.SIGKILL)
        self.texts += len(texts)
        return self.encoder.encode(texts)


def tool(*arguments: str, ranks: int = 1) -> Any:
    common = [TOOL, *arguments, "--platform", "cpu", "--max-tokens", str(LONGEST)]
    return run([sys.executable, *common]) if ranks == 1 else torchrun(ranks, *common)


def opened_for(shards: Path, encoder: TextEncoder) -> TextEncoding:
    """What the tool opens."""
    opened, _ = open_shards(data_of("shards", shards), build_codec(CodecConfig()), str(shards))
    return TextEncoding(opened, encoder, "fp16", 2, shards / "text")


def test_the_tool_writes_what_the_encoder_gives_with_any_number_of_processes(root: Path, tmp_path: Path) -> None:
    """Features within half a unit of fp16's last digit, counts, facts; two ranks write the bytes that one does."""
    shards = Path(shutil.copytree(root / "shards", tmp_path / "shards"))
    common = [str(shards), "--encoder", "t5", "--encoder-path", str(root / "t5"), "--batch", "2"]
    alone = tool(*common)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert "5 captions, 29 tokens encoded" in alone.stdout and "5 of 6 samples have one, 1 have none" in alone.stdout
    two = str(tmp_path / "two")
    together = tool(str(shards), "--encoder", "words", "--batch", "2", "--output", two, ranks=2)
    assert "5 captions, 26 tokens encoded" in together.stdout
    encode(shards, build_encoder(options_of(root, "words")), tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    found = contents(shards / "text")
    names = ["counts.npy", "encode.json", "s-000.safetensors", "s-001.safetensors", "text.json"]
    assert sorted(found) == names
    encoder = build_encoder(options_of(root, "t5"))
    expected = [encoder.encode([one.caption.strip()])[0].numpy() if one.caption else np.empty((0, 24)) for one in TOLD]
    counts = np.load(shards / "text" / "counts.npy")
    assert counts.dtype == np.int32 and counts.tolist() == [len(rows) for rows in expected] == [5, 9, 3, 3, 9, 0]
    for name, part in (("s-000", slice(0, 4)), ("s-001", slice(4, 6))):
        tensors = load_file(shards / "text" / f"{name}.safetensors")
        assert tensors["features"].dtype == np.float16 and tensors["counts"].tolist() == counts[part].tolist()
        rows = np.concatenate(expected[part])
        np.testing.assert_allclose(tensors["features"], rows, rtol=2**-11, atol=1e-6 * np.abs(rows).max())
    facts = json.loads((shards / "text" / "text.json").read_text())
    assert facts["fingerprint"] == encoder.fingerprint and (facts["encoder"], facts["width"]) == ("t5", 24)
    assert (facts["samples"], facts["captions"], facts["tokens"], facts["stored"]) == (6, 5, 29, "fp16")
    encoding = replace(opened_for(shards, encoder), output=shards / "text")
    claim(encoding)
    with pytest.raises(UserError, match="stored=fp16, not fp32") as caught:
        claim(replace(encoding, stored="fp32"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fail", [1, 2, 3])
def test_a_killed_encoding_goes_on(root: Path, tmp_path: Path, fail: int) -> None:
    """Behind the last whole shard, with equal bytes in the end; the first shard takes two calls, the second one."""
    shards = Path(shutil.copytree(root / "shards", tmp_path / "shards"))
    encoder = build_encoder(options_of(root, "words"))
    whole, second, third = Watched(encoder), Watched(encoder), Watched(encoder)
    encode(shards, whole, tmp_path / "whole")
    assert (whole.calls, whole.texts) == (3, 5)
    process = get_context("fork").Process(target=encode, args=(shards, Watched(encoder, fail), tmp_path / "cut"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and list((tmp_path / "cut").glob("*.partial"))
    assert not (tmp_path / "cut" / "text.json").exists()
    encode(shards, second, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert second.texts == (1 if fail == 3 else 5)
    encode(shards, third, tmp_path / "cut")
    assert third.calls == 0


def test_damaged_captions_count_as_none_and_are_named(root: Path, tmp_path: Path, codec: Codec) -> None:
    told = (Told("a", "... !"), Told("b", "a ball"), Told("c", "x" * 10, False))
    shards = told_shards(tmp_path / "shards", codec, told)
    path = shards / "s-000.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"caption": "xxxxxxxxxx"', b'"caption": ["xxxxxxxx"]'))
    done = encode(shards, build_encoder(options_of(root, "words")))
    assert [error.path for error in done.damaged] == ["s-000.tar[c]"] and done.captions == 1
    assert np.load(shards / "text" / "counts.npy").tolist() == [0, 2, 0]


def test_where_the_shards_cannot_be_written_the_cache_has_the_features(
    root: Path, codec: Codec, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in contents(root / "latents").items():
        memory.pipe(f"/bare/{name}", content)
    data = data_of("latents", "memory://bare", cache=str(tmp_path / "cache"))
    opened, _ = open_shards(data, codec, data.path)
    output = default_output(opened, data.path)
    assert output.is_relative_to(tmp_path / "cache" / "text")
    encoder = build_encoder(options_of(root, "words"))
    output.mkdir(parents=True)
    encoding = TextEncoding(opened, encoder, "fp32", 8, output)
    claim(encoding)
    encode_shards(encoding, [0, 1], Done(tqdm(disable=True)))
    finish(encoding)
    source = open_source(data, codec, Conditioning(options_of(root, "words")))
    assert source.conditioning.encoder is None and source.conditioning.features == encoder.fingerprint
    memory.rm("/bare", recursive=True)
    local = str(root / "shards")
    part, _ = open_shards(data_of("shards", f"{local}/s-000.tar"), codec, f"{local}/s-000.tar")
    assert default_output(part, f"{local}/s-000.tar").name == f"text-{part.index.fingerprint[:12]}"


def test_features_do_not_change_the_index(root: Path, codec: Codec, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(root / "shards", tmp_path / "shards"))
    data = data_of("shards", shards)
    before = open_source(data, codec).train.fingerprint, contents(shards)
    encode(shards, build_encoder(options_of(root, "words")))
    after = {name: content for name, content in contents(shards).items() if not name.startswith("text/")}
    assert (open_source(data, codec).train.fingerprint, after) == before


def test_the_tool_tells_mistakes_in_one_line(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    source = str(root / "shards")
    for arguments, reason in (
        ([source], "condition.encoder_path is empty"),
        ([source, "--encoder", "words", "--batch", "0"], "--batch=0: must be at least 1"),
        ([source, "--encoder", "words", "--output", str(mine)], "is not empty"),
        (["no/where", "--encoder", "words"], "data.path=no/where: no such folder"),
    ):
        result = tool(*arguments)
        assert result.returncode == 2 and reason in result.stderr and result.stderr.count("\n") == 1, result.stderr
