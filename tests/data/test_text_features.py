"""Text features computed once: training reads just those, and refuses everything that does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.latents import STORED, to_float32
from megatron_videogpt.data.shards.texts import DTYPES, features_name, first_samples
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.splits import VideoSplit
from megatron_videogpt.errors import UserError
from tests.data.encoded import CAPTIONS, contents, encode, options_of, text_sets
from tests.data.told import TOLD, data_of, read_all
from tests.texts import text_clip, text_ids

FAR = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 263, "▁red": 2654, "▁ball": 8287, "▁falls": 39_999, "▁box": 3800}
"""Ids that are no numbers of bfloat16."""


@pytest.fixture(scope="module")
def codec() -> Codec:
    return build_codec(CodecConfig())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_sets(tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("kind", ["shards", "latents"])
def test_training_reads_the_features_and_needs_no_encoder(
    root: Path, codec: Codec, tmp_path: Path, kind: str, stored: str
) -> None:
    """Bit for bit the encoder's numbers as they are stored; the planner has the real counts."""
    path = Path(shutil.copytree(root / kind, tmp_path / "set"))
    encoder = build_encoder(options_of(root, "clip"))
    encode(path, encoder, stored=stored)
    data = data_of(kind, path, workers=1)
    source = open_source(data, codec, Conditioning(options_of(root, "clip", encoder_path="", width=32)))
    assert source.conditioning.encoder is None and source.conditioning.identity == encoder.fingerprint
    samples, rejections = read_all(source, codec, data, steps=3)
    limit = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8}[stored]
    for place, sample in samples.items():
        (expected,) = encoder.encode([CAPTIONS[place.replace("/", "-")]])
        assert sample.condition is not None and sample.condition.dtype == torch.float32
        torch.testing.assert_close(sample.condition, expected, rtol=limit, atol=2e-6 * expected.abs().max().item())
        file = load_bytes(path / "text", 0 if place in [one.path for one in TOLD[:4]] else 1, stored)
        assert any(np.array_equal(sample.condition, rows) for rows in file)
    plans = source.train.plans(0, range(12))
    split = source.train
    assert len(samples) >= 3 and isinstance(split, VideoSplit)
    counts = np.load(path / "text" / "counts.npy")
    assert plans.prefix.tolist() == counts[split.items[plans.item]].tolist() and plans.prefix.dtype == np.int64
    assert not plans.dropped[plans.prefix == 0].any()
    assert set(rejections.counts) <= {"condition"}
    last = split.collection.job(plans[0], 5)
    with pytest.raises(BadVideo, match="has no caption") as caught:
        last.read()
    assert caught.value.kind == "condition" and caught.value.path == "s-001.tar[f]"


def test_ids_come_back_exactly_and_need_no_tokenizer(root: Path, codec: Codec, tmp_path: Path) -> None:
    """Stored with 16 bits; ids beyond 256, where bfloat16 has no longer every whole number."""
    path, folder = Path(shutil.copytree(root / "latents", tmp_path / "set")), text_ids(tmp_path / "ids", FAR)
    options = ConditionConfig("text", encoder="ids", encoder_path=str(folder), tokens=6)
    encoder = build_encoder(options)
    encode(path, encoder, stored="bf16")
    data, alone = data_of("latents", path), replace(options, encoder_path="", width=40_000)
    source = open_source(data, codec, Conditioning(alone))
    assert source.conditioning.encoder is None and source.conditioning.identity == encoder.fingerprint
    samples, rejections = read_all(source, codec, data, steps=3)
    assert len(samples) >= 3 and set(rejections.counts) <= {"condition"}
    for place, sample in samples.items():
        words = CAPTIONS[place.replace("/", "-")].split()
        expected = [1, *(FAR.get(f"▁{word}", 0) for word in words), 2, 2, 2, 2][:6]
        assert sample.condition is not None and sample.condition.dtype == torch.int64
        assert sample.condition.tolist() == expected
    for change, reason in (
        ({"tokens": 8}, "tokens = 6, but this run has condition.tokens = 8"),
        ({"text_from": "label"}, "text_from = caption, but this run has condition.text_from = label"),
    ):
        with pytest.raises(UserError, match=reason):
            open_source(data, codec, Conditioning(replace(alone, **change)))


def load_bytes(folder: Path, shard: int, stored: str) -> list[np.ndarray]:
    """Features of each sample of a shard, float32, by the library's own reading of what lies where."""
    from safetensors.torch import load_file

    tensors = load_file(folder / f"s-{shard:03d}.safetensors")
    features = tensors["features"].float().numpy()
    return np.split(features, np.cumsum(tensors["counts"].numpy())[:-1])


def test_remote_features_are_read_in_slices_and_kept(root: Path, codec: Codec, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(root / "latents", tmp_path / "set"))
    encoder = build_encoder(options_of(root, "words"))
    encode(shards, encoder, stored="fp32")
    memory = fsspec.filesystem("memory")
    for name, content in {**contents(shards)}.items():
        memory.pipe(f"/features/{name}", content)
    data = data_of("latents", "memory://features", cache=str(tmp_path / "cache"))
    split = open_source(data, codec, Conditioning(options_of(root, "words"))).train
    assert isinstance(split, VideoSplit)
    job = split.collection.job(split.plans(0, [0])[0], 1)
    assert torch.equal(torch.from_numpy(job.read().condition), encoder.encode([CAPTIONS[TOLD[1].key]])[0])
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache" / "members").glob("??/*"))
    assert 9 * 64 * 4 in sizes
    memory.rm("/features", recursive=True)
    assert np.array_equal(job.read().condition, encoder.encode([CAPTIONS[TOLD[1].key]])[0])  # type: ignore[arg-type]


def damaged(change: Any) -> Any:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "text" / "text.json").read_text())
        (folder / "text" / "text.json").write_text(json.dumps({**facts, **change}))

    return apply


def _cut(folder: Path) -> None:
    path = folder / "text" / "s-001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _counts(folder: Path) -> None:
    np.save(folder / "text" / "counts.npy", np.zeros(3, np.int32))


REFUSED = {
    "other index": (damaged({"index": "0" * 64}), {}, "features of other shards .index 000000000000"),
    "record": (lambda folder: (folder / "text" / "text.json").write_text("{"), {}, "text.json: cannot be read"),
    "release": (damaged({"version": 9}), {}, "of another release"),
    "no counts": (lambda folder: (folder / "text" / "counts.npy").unlink(), {}, "counts.npy: cannot be read"),
    "counts": (_counts, {}, r"must be int32 \[6\], but is int32 \[3\]"),
    "missing": (lambda folder: (folder / "text" / "s-000.safetensors").unlink(), {}, "s-000.safetensors: is missing"),
    "cut": (_cut, {}, "s-001.safetensors: has [0-9]+ bytes, not"),
    "encoder": (None, {"encoder": "t5", "width": 32}, "encoder = clip, but this run has condition.encoder = t5"),
    "tokens": (None, {"max_tokens": 8}, "max_tokens = 9, but this run has condition.max_tokens = 8"),
    "width": (None, {"encoder_path": "", "width": 64}, "width = 32, but this run has condition.width = 64"),
    "weights": (None, {"encoder_path": "other"}, "of another clip .* than condition.encoder_path"),
}


@pytest.fixture(scope="module")
def encoded(root: Path) -> Path:
    """The shards with features of clip."""
    shards = Path(shutil.copytree(root / "shards", root / "encoded"))
    encode(shards, build_encoder(options_of(root, "clip")))
    text_clip(root / "other", seed=5)
    return shards


@pytest.mark.parametrize("case", REFUSED)
def test_features_that_do_not_fit_are_refused_in_one_line(
    root: Path, encoded: Path, codec: Codec, tmp_path: Path, case: str
) -> None:
    change, options, reason = REFUSED[case]
    shards = Path(shutil.copytree(encoded, tmp_path / "set"))
    if change is not None:
        change(shards)
    options = {**options, **({"encoder_path": str(root / "other")} if options.get("encoder_path") else {})}
    given = options_of(root, "clip", **options)
    with pytest.raises(UserError, match=reason) as caught:
        open_source(data_of("shards", shards), codec, Conditioning(given))
    assert "\n" not in str(caught.value) and str(shards) in str(caught.value)


def test_every_data_set_of_a_mixture_needs_its_own(root: Path, encoded: Path, codec: Codec, tmp_path: Path) -> None:
    second = Path(shutil.copytree(root / "latents", tmp_path / "second"))
    mixture = {str(encoded): 0.5, str(second): 0.5}
    data = data_of("shards", "", mixture=mixture)
    advance = Conditioning(options_of(root, "clip", encoder_path="", width=32))
    with pytest.raises(UserError, match="second: no text features there"):
        open_source(data, codec, advance)
    assert open_source(data, codec, Conditioning(options_of(root, "clip"))).conditioning.encoder is not None
    encode(second, build_encoder(options_of(root, "clip", encoder_path=str(root / "other"))))
    with pytest.raises(UserError, match="data.mixture: .* of different encoders"):
        open_source(data, codec, advance)
    shutil.rmtree(second / "text")
    encode(second, build_encoder(options_of(root, "clip")))
    source = open_source(data, codec, advance)
    assert source.conditioning.encoder is None
    samples, _ = read_all(source, codec, data, steps=3)
    assert len(samples) >= 3 and all(sample.condition is not None for sample in samples.values())


def test_rows_lie_where_the_counts_say(root: Path, encoded: Path, codec: Codec) -> None:
    """Each sample's slice of the file's bytes, against the library's reading."""
    source = open_source(data_of("shards", encoded), codec, Conditioning(options_of(root, "clip")))
    split = source.train
    assert isinstance(split, VideoSplit)
    features = split.collection.features  # type: ignore[attr-defined]
    index = split.collection.index  # type: ignore[attr-defined]
    assert first_samples(index).tolist() == [0, 4, 6] and features.without == 1
    rows = [*load_bytes(encoded / "text", 0, "fp16"), *load_bytes(encoded / "text", 1, "fp16")]
    for entry in range(5):
        place = features.rows(index, entry)
        assert place.url.endswith(features_name(f"s-{entry // 4:03d}.tar")) and place.dtype == DTYPES["fp16"]
        data = Cache("/nowhere", 0).read(place.url, place.offset, place.count * 32 * 2)
        np.testing.assert_array_equal(to_float32(data, "F16").reshape(-1, 32), rows[entry])
        np.testing.assert_array_equal(place.read()["condition"], rows[entry])
