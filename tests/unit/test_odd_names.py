"""File names that are not UTF-8, as bytes b"caf\xe9.mp4" that Python holds as surrogates: read, and named in UTF-8, in
training, preparation, encoding and sampling.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.data.bad import BadVideo, Rejections, recorded, shown
from megatron_videogpt.data.plans import SamplePlan
from megatron_videogpt.data.prepare.encode import Encoding, Progress, claim_output, encode_parts, finish
from megatron_videogpt.data.prepare.listings import Listing
from megatron_videogpt.data.prepare.run import prepare
from megatron_videogpt.data.prepare.video import Options
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.sources.open import open_source, usable_videos
from megatron_videogpt.sample.generate import Clip
from megatron_videogpt.sample.output import Output
from megatron_videogpt.sample.prompts import find_sources, read_prompt
from tests.fakes import CONFIG as SAMPLING
from tests.fakes import Unshuffle

from .test_folder_walk import CONFIG, video

CAFE = os.fsdecode(b"caf\xe9.mp4")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9.mp4", "caf\\xe9.mp4"),
        (b"\xff\xfe/\xc3\xa9", "\\xff\\xfe/é"),
        ("日本 é\\ü.mp4".encode(), "日本 é\\ü.mp4"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_names_that_are_not_utf_8_are_shown_by_their_bytes(name: bytes, text: str) -> None:
    assert shown(os.fsdecode(name)) == text and str(BadVideo(Path(os.fsdecode(name)), "torn")) == f"{text}: torn"
    assert shown("half \ud800 \udce9") == "half \\ud800 \\udce9"


@pytest.fixture
def cafe(tmp_path: Path) -> Path:
    """Two videos, one of whose names is not UTF-8, and two such files that are none."""
    root = tmp_path / "root"
    video(root / "b.mp4")
    try:
        video(root / os.fsdecode(b"d\xe9") / CAFE, 12)
    except OSError:
        pytest.skip("this file system takes no such names")
    (root / os.fsdecode(b"bad\xff.mp4")).write_text("no video")
    video(root / os.fsdecode(b"short\xfe.mp4"), 2)
    return root


def test_training_reads_such_names(cafe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(CONFIG, path=str(cafe))
    source = open_source(config, build_codec(CodecConfig()))
    names = [f"{cafe}/bad\\xff.mp4", f"{cafe}/short\\xfe.mp4"]
    assert [error.path for error in source.skipped] == names and source.left_out.total() == 2
    for record in caplog.records:
        record.getMessage().encode()
    folder = usable_videos(config, build_codec(CodecConfig()), str(cafe), 4, 9).collection
    assert folder.paths[1] == f"{os.fsdecode(b'd' + bytes([0xE9]))}/{CAFE}" and len(folder.fingerprint) == 64
    assert folder.name(1) == f"{cafe}/d\\xe9/caf\\xe9.mp4" and len(set(folder.holdout_hashes(np.arange(2)))) == 2
    job = folder.job(SamplePlan(0, 1, 0, 1, (2, 4), 2, (2,), (32, 32)), 1)
    sample = job.read()
    assert sample.name == job.label == f"{cafe}/d\\xe9/caf\\xe9.mp4[2::2]"
    assert sample.pixels is not None and np.abs(sample.pixels.astype(int) - 100).max() <= 3
    with pytest.raises(BadVideo, match="frame 20 asked for") as caught:
        folder.job(SamplePlan(0, 1, 0, 1, (20,), 1, (1,), (32, 32)), 1).read()
    rejections = Rejections(1.0, tmp_path / "rejected.jsonl")
    rejections.add(caught.value)
    rejections.add(caught.value)
    assert recorded(tmp_path / "rejected.jsonl") == {f"{cafe}/d\\xe9/caf\\xe9.mp4"}
    assert (tmp_path / "rejected.jsonl").read_text("ascii").count("\n") == 1


def test_preparation_keeps_such_names_as_text(cafe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = Options((str(cafe),), listing=Listing(label_folder=True), min_side=8, min_frames=4)
    assert prepare(options, out, 0, 60)[0].videos == 2 and not prepare(options, out, 0, 60)[1]
    index = load_index(out)
    assert [index.key(i) for i in range(2)] == ["b", "d_xe9_caf_xe9"]
    assert (index.meta(1)["source"], index.meta(1)["label"]) == ("d\\xe9/caf\\xe9.mp4", "d\\xe9")
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [(line["name"], line["kind"]) for line in lines] == [
        ("bad\\xff.mp4", "unreadable"),
        ("short\\xfe.mp4", "too_short"),
    ]
    # A source that is itself called so, and a shard.
    source = str(cafe / os.fsdecode(b"d\xe9"))
    prepare(replace(options, sources=(source,)), tmp_path / "one", 0, 60)
    shard = (out / "shard-000000.tar").rename(out / os.fsdecode(b"sh\xe9.tar"))
    prepare(replace(options, sources=(str(shard),)), tmp_path / "two", 0, 60)
    assert load_index(tmp_path / "one").key(0) == "caf_xe9" and load_index(tmp_path / "two").key(0) == "b"
    assert 'd\\\\xe9"]' in (tmp_path / "one" / "prepare.toml").read_text("utf-8")


def test_encoding_keeps_such_names_as_text(cafe: Path, tmp_path: Path) -> None:
    codec = build_codec(CodecConfig())
    # The file is replaced after it was looked at.
    usable = usable_videos(CONFIG, codec, str(cafe), 1, 9)
    (cafe / os.fsdecode(b"short\xfe.mp4")).write_text("torn")
    encoding = Encoding(usable, codec, 32, 16, "fp16", 16, 4, 10**6, tmp_path / "out", {"source": str(cafe)})
    claim_output(encoding)
    with tqdm(disable=True) as bar:
        encode_parts(encoding, range(len(encoding.parts)), 0, 60.0, Progress(Rejections(1.0), bar))
    assert dict(finish(encoding)) == {"unreadable": 2}
    index = load_index(tmp_path / "out")
    assert [index.key(i) for i in range(2)] == ["b", "d_xe9_caf_xe9"]
    assert index.meta(1)["source"] == "d\\xe9/caf\\xe9.mp4" and index.entries["frames"].tolist() == [6, 12]
    lines = (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"{cafe}/bad\\xff.mp4", f"{cafe}/short\\xfe.mp4"]


def test_sampling_names_its_outputs_in_utf_8(cafe: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(cafe / os.fsdecode(b"p\xe9.png"))
    sources = find_sources([cafe])
    assert {source.name: str(source) for source in sources} == {
        "b": f"{cafe}/b.mp4",
        "bad\\xff": f"{cafe}/bad\\xff.mp4",
        "caf\\xe9": f"{cafe}/d\\xe9/caf\\xe9.mp4",
        "p\\xe9": f"{cafe}/p\\xe9.png",
        "short\\xfe": f"{cafe}/short\\xfe.mp4",
    }
    for source in sources:
        if source.name.startswith("bad"):
            with pytest.raises(ValueError, match=r"^.*/bad\\xff\.mp4: not a readable video"):
                read_prompt(source, SAMPLING, Unshuffle())
            continue
        prompt = read_prompt(source, SAMPLING, Unshuffle())
        assert len(prompt.condition) == {"b": 1, "caf\\xe9": 4, "p\\xe9": 1, "short\\xfe": 2}[prompt.name]
        with Output(tmp_path / "out" / prompt.name, ("latents",), prompt, torch.zeros(1, 192, 4, 4), 1) as output:
            output.append(Clip(torch.zeros(1, 192, 4, 4), prompt.condition[:1]))
            output.finish({"input": str(source)})
    names = sorted(os.fsencode(path.name) for path in (tmp_path / "out").glob("*.json"))
    assert names == [b"b.json", b"caf\\xe9.json", b"p\\xe9.json", b"short\\xfe.json"]
    assert json.loads((tmp_path / "out" / "p\\xe9.json").read_text())["input"] == f"{cafe}/p\\xe9.png"
