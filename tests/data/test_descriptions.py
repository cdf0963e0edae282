"""Labels and captions of every source, through the loader and its reader processes, as conditions of samples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.described import BesideFile, DescribedJob, InShard
from megatron_videogpt.data.jobs import FileJob, MemberJob
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.latents import LatentsJob
from megatron_videogpt.data.sources.datasets import Folder, Shards
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.splits import VideoSplit
from megatron_videogpt.errors import UserError
from tests.data.told import TOLD, data_of, read_all, told_folder, told_shards
from tests.texts import text_clip

KINDS = {"folder": FileJob, "shards": MemberJob, "latents": LatentsJob}
CLASSES = ("cook", "sport", "sport/tennis")
NUMBERS = {"sport/tennis/a": 2, "sport/tennis/b": 2, "sport/c": 1, "cook/d": 0}
WORDS = ConditionConfig(kind="text", encoder="words", max_tokens=8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return build_codec(CodecConfig())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, codec: Codec) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("told")
    made = {"folder": told_folder(root / "folder"), "shards": told_shards(root / "shards")}
    return {**made, "latents": told_shards(root / "latents", codec)}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_become_numbers_of_classes(sets: dict[str, Path], codec: Codec, kind: str) -> None:
    """Of the class of the longest leading parts; a video without a label and one of no class are bad samples."""
    options = ConditionConfig(kind="class", classes=CLASSES)
    data = data_of(kind, sets[kind], workers=1, cache=str(sets[kind].parent / "cache"))
    source = open_source(data, codec, Conditioning(options))
    assert source.conditioning.encoder is None
    samples, rejections = read_all(source, codec, data)
    assert set(samples) >= set(NUMBERS) - held_out(source) and set(samples) <= set(NUMBERS)
    for path, sample in samples.items():
        assert sample.condition is not None and sample.condition.dtype == torch.int64
        assert sample.condition.tolist() == [NUMBERS[path]] and sample.label == path.rpartition("/")[0]
    assert set(rejections.counts) <= {"condition"}
    split = source.train
    assert isinstance(split, VideoSplit)
    reasons = {}
    for number in range(len(TOLD)):
        plan = split.plans(0, [0])[0]
        try:
            source.conditioning.applied(split.collection.job(plan, number).read())
        except BadVideo as error:
            assert error.kind == "condition" and "\n" not in str(error)
            reasons[split.collection.name(number)] = error.reason
    (unknown,) = (reason for name, reason in reasons.items() if "spart" in name)
    (without,) = (reason for name, reason in reasons.items() if "spart" not in name)
    assert unknown == "class 'spart' is not one of the 3 of condition.classes; the nearest: sport, sport/tennis"
    assert without == "has no label, and condition.kind is class"


def held_out(source: object) -> set[str]:
    """Paths that only validation has."""
    split = source.validation  # type: ignore[attr-defined]
    names = [split.collection.name(int(item)) for item in split.items]
    return {one.path for one in TOLD if any(f"/{one.path}.mp4" in name or f"[{one.key}]" in name for name in names)}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_become_features(sets: dict[str, Path], codec: Codec, kind: str) -> None:
    """Exactly what the encoder gives for the caption that was written."""
    data = data_of(kind, sets[kind], workers=1, cache=str(sets[kind].parent / "cache"))
    source = open_source(data, codec, Conditioning(WORDS))
    encoder = build_encoder(WORDS)
    assert source.conditioning.identity == encoder.fingerprint
    samples, rejections = read_all(source, codec, data)
    captions = {one.path: one.caption.strip() for one in TOLD if one.caption}
    assert set(captions) - held_out(source) <= set(samples) <= set(captions)
    for path, sample in samples.items():
        assert sample.caption == captions[path] and sample.condition is not None
        assert sample.condition.dtype == torch.float32
        assert torch.equal(sample.condition, encoder.encode([captions[path]])[0])
    if "f" not in held_out(source):
        assert rejections.counts["condition"] > 0
    assert source.train.plans(0, [0, 1]).prefix.tolist() == [8, 8]


def test_an_encoder_with_weights_works_in_reader_processes(sets: dict[str, Path], codec: Codec, tmp_path: Path) -> None:
    options = ConditionConfig(kind="text", encoder_path=str(text_clip(tmp_path / "clip")), max_tokens=9)
    data = data_of("latents", sets["latents"], workers=1)
    source = open_source(data, codec, Conditioning(options))
    samples, _ = read_all(source, codec, data, steps=2)
    encoder, captions = build_encoder(options), {one.path: one.caption.strip() for one in TOLD}
    assert samples
    for path, sample in samples.items():
        torch.testing.assert_close(sample.condition, encoder.encode([captions[path]])[0], atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Counting(Cache):
    """A cache that notes what was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def read(self, url: str, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        return super().read(url, offset, size)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_without_conditions_have_the_jobs_they_had(sets: dict[str, Path], codec: Codec, kind: str) -> None:
    data = data_of(kind, sets[kind])
    for conditioning, job in ((Conditioning(), KINDS[kind]), (Conditioning(WORDS), DescribedJob)):
        split = open_source(data, codec, conditioning).train
        assert type(split.job(split.plans(0, [0])[0])) is job


def test_only_conditions_cost_reads(sets: dict[str, Path], codec: Codec) -> None:
    """A read more for the JSON, and another for a caption that the JSON has not."""
    counted = {}
    for conditioning in (Conditioning(), Conditioning(WORDS)):
        split = open_source(data_of("shards", sets["shards"]), codec, conditioning).train
        assert isinstance(split, VideoSplit) and isinstance(split.collection, Shards)
        cache = Counting("/nowhere", 0)
        collection = Shards(split.collection.index, cache, split.collection.reading, split.collection.described)
        for entry in range(len(TOLD)):
            collection.job(split.plans(0, [0])[0], entry).read()
        counted[conditioning.wanted] = len(cache.asked)
    beside = sum(one.beside and bool(one.caption) for one in TOLD)
    assert counted == {False: len(TOLD), True: 2 * len(TOLD) + beside}


def test_what_is_damaged_is_named(sets: dict[str, Path], codec: Codec, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    good = json.dumps({"label": 7, "caption": "x"}).encode()
    parts = [good, b"[1]", b"{", b'{"caption": ["a"]}', b'{"label": true}', b"\xff\xfe", b" text\n"]
    places = np.cumsum([0, *map(len, parts)]).tolist()
    shard.write_bytes(b"".join(parts))

    def read(meta: int | None, text: int | None) -> dict[str, str]:
        where = [(0, 0) if i is None else (places[i], len(parts[i])) for i in (meta, text)]
        return InShard(str(shard), "clip", *where, Cache("/nowhere", 0)).read()

    assert read(0, 6) == {"label": "7", "caption": "x"} and read(None, 6) == {"label": "", "caption": "text"}
    assert read(None, None) == {"label": "", "caption": ""}
    wrong = {
        (1, None): "no object",
        (2, None): "cannot be read",
        (3, 6): "no text but list",
        (4, None): "no text but bool",
    }
    for (meta, text), reason in {**wrong, (None, 5): "not UTF-8"}.items():
        with pytest.raises(BadVideo, match=reason) as caught:
            read(meta, text)
        assert (caught.value.path, caught.value.kind) == ("a.tar[clip]", "metadata") and "\n" not in str(caught.value)
    for place, kind in ((shard, "truncated"), (tmp_path / "b.tar", "missing")):
        with pytest.raises(BadVideo) as caught:
            InShard(str(place), "clip", (5, 10**6), (0, 0), Cache("/nowhere", 0)).read()
        assert caught.value.kind == kind and caught.value.path == f"{place.name}[clip]"
    (tmp_path / "v.txt").write_bytes(b"\xff")
    with pytest.raises(BadVideo, match="not UTF-8"):
        BesideFile("", str(tmp_path / "v.mp4")).read()
    (tmp_path / "v.txt").write_bytes("\ufeff Été \n".encode())
    assert BesideFile("x/y", str(tmp_path / "v.mp4")).read() == {"label": "x/y", "caption": "Été"}


def test_scenes_get_an_encoder_too(codec: Codec) -> None:
    source = open_source(DataConfig(physics=PhysicsConfig(size=32)), codec, Conditioning(WORDS))
    assert source.conditioning.encoder is not None and source.train.conditioning is source.conditioning  # type: ignore
    with pytest.raises(UserError, match="physics scenes: no text features there"):
        open_source(DataConfig(), codec, Conditioning(ConditionConfig(kind="text", width=8)))


def test_labels_of_a_folder(sets: dict[str, Path], codec: Codec) -> None:
    split = open_source(data_of("folder", sets["folder"]), codec).train
    assert isinstance(split, VideoSplit) and isinstance(split.collection, Folder)
    found = {path: split.collection.label(i) for i, path in enumerate(split.collection.paths)}
    assert found == {f"{one.path}.mp4": one.label for one in TOLD}


def test_captions_without_an_encoder_are_refused(sets: dict[str, Path], codec: Codec) -> None:
    for kind in KINDS:
        with pytest.raises(UserError, match="no text features there.*condition.encoder_path is empty") as caught:
            open_source(data_of(kind, sets[kind]), codec, Conditioning(ConditionConfig(kind="text", width=8)))
        assert str(sets[kind]) in str(caught.value) and "\n" not in str(caught.value)
