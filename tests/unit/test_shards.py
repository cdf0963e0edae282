"""Shards: what is found in tar files against Python's tarfile, indexes against what was written, rejections by kind."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards import dataset as shards
from megatron_videogpt.data.shards.dataset import expand_braces, load_index, open_index
from megatron_videogpt.data.shards.index import Index
from megatron_videogpt.data.shards.scan import ENTRY
from megatron_videogpt.data.shards.tar import Member, members
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index
from megatron_videogpt.data.video.container import DEFAULTS, Limits
from megatron_videogpt.data.video.pictures import write_video

SOUND = {"width": 64, "height": 48, "frames": 9, "fps": 25.0}


def tar(path: Path, files: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def meta(**changes: object) -> bytes:
    return json.dumps({**SOUND, **changes}).encode()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9)


def opened(folder: Path, cache: Cache, limits: Limits = DEFAULTS) -> Index:
    return open_index(str(folder), cache, 0, limits)


def counts(index: Index) -> dict[str, int]:
    return dict(Counter(error.kind for error in index.rejected))


def fill(writer: ShardWriter, first: int, last: int) -> None:
    for i in range(first, last):
        files = {"mp4": bytes([i]) * (100 + 7 * i), **({"txt": f"text {i}".encode()} if i % 2 else {})}
        writer.add(f"folder/clip_{i:03d}", files, {**SOUND, "frames": 9 + i, "label": "x"}, position=i)


names = st.text(
    st.characters(
        min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\\\x7f", exclude_categories=("Cs", "Cc")
    ),
    min_size=1,
    max_size=150,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=1500)), max_size=6),
    st.sampled_from([0, 1, 2]),
)
def test_members_are_those_that_tarfile_finds(files: list[tuple[str, bytes]], tar_format: int) -> None:
    """USTAR, GNU and PAX; long names and letters beyond ASCII."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tar_format) as file:
        for name, data in files:
            info = tarfile.TarInfo(f"./folder/{name}")
            info.size = len(data)
            try:
                file.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for USTAR
                continue
    whole = target.getvalue()
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        expected = [Member(info.name.removeprefix("./"), info.offset_data, info.size) for info in file]
    assert list(members("a.tar", lambda offset, size: whole[offset : offset + size], len(whole))) == expected


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("s3://b/{x,y}-{0..1}.tar") == [f"s3://b/{letter}-{n}.tar" for letter in "xy" for n in (0, 1)]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(ValueError, match="over a million"):
        expand_braces("{0..1000000}.tar")


def test_what_is_written_is_found_again(tmp_path: Path, cache: Cache) -> None:
    """By tarfile, by the index that the writer's notes give, and by one that is built from the tar files; twice the
    same bytes.
    """
    for folder in ("a", "b"):
        writer = ShardWriter(tmp_path / folder, "videos", shard_count=4)
        fill(writer, 0, 10)
        writer.close()
        merge_index(tmp_path / folder, "videos")
    written = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert sorted(name for name in written if name.endswith(".tar")) == [f"shard-00000{n}.tar" for n in range(3)]
    with tarfile.open(tmp_path / "a" / "shard-000001.tar") as file:
        assert file.getnames()[:2] == ["folder/clip_004.mp4", "folder/clip_004.json"]
    merged = load_index(tmp_path / "a")
    for path in (tmp_path / "a").glob("index*"):
        path.unlink()
    scanned = opened(tmp_path / "a", cache)
    assert (
        scanned.fingerprint == merged.fingerprint
        and scanned.entries.tobytes() == merged.entries.tobytes()
        and not scanned.rejected
    )
    assert isinstance(scanned.entries, np.memmap) and scanned.entries.dtype == ENTRY and scanned.kind == "videos"
    for i in range(10):
        entry = scanned.entries[i]
        assert (
            scanned.key(i) == f"folder/clip_{i:03d}"
            and scanned.data(i) == bytes([i]) * (100 + 7 * i)
            and scanned.suffix(i) == "mp4"
        )
        assert (entry["width"], entry["height"], entry["frames"], entry["fps"], entry["shard"]) == (
            64,
            48,
            9 + i,
            25,
            i // 4,
        )
        assert scanned.meta(i) == {
            **SOUND,
            "frames": 9 + i,
            "label": "x",
            **({"caption": f"text {i}"} if i % 2 else {}),
        }
        assert scanned.shard_url(i) == f"{tmp_path}/a/shard-00000{i // 4}.tar"


def test_each_fault_is_counted_under_its_kind(tmp_path: Path, cache: Cache) -> None:
    """Latents need no decoding, so made-up bytes will do; the good ones stay."""
    data = {f"good{i}.safetensors": b"x" * 10 for i in range(3)} | {f"good{i}.json": meta() for i in range(3)}
    faults = {
        "extension": {"a.exe": b"x", "noextension": b"x", ".hidden.mp4": b"x"},
        "incomplete": {"a.json": meta(), "b.txt": b"only text"},
        "metadata": {
            "a.safetensors": b"x",
            "a.json": b"[]",
            "b.safetensors": b"x",
            "c.safetensors": b"x",
            "c.json": meta(width=10**6),
        },
        "too_large": {"a.safetensors": b"x" * 3000, "a.json": meta()},
        "no_frames": {"a.safetensors": b"", "a.json": meta()},
        "unsafe_name": {"../a.safetensors": b"x", "/b.safetensors": b"x", "c/../../d.json": meta()},
    }
    expected = {"extension": 3, "incomplete": 2, "metadata": 3, "too_large": 1, "no_frames": 1, "unsafe_name": 3}
    for kind, files in faults.items():
        folder = tmp_path / kind
        folder.mkdir()
        tar(folder / "a.tar", {**files, **data})
        index = opened(folder, cache, Limits(bytes=2000))
        assert counts(index) == {kind: expected[kind]}, index.rejected
        assert [index.key(i) for i in range(len(index))] == ["good0", "good1", "good2"]
        assert counts(opened(folder, cache, Limits(bytes=2000))) == {kind: expected[kind]}  # from the files, too


def test_damaged_tar_files_keep_what_came_before(tmp_path: Path, cache: Cache) -> None:
    files = {
        f"k{i}.{suffix}": data for i in range(4) for suffix, data in (("safetensors", b"x" * 700), ("json", meta()))
    }
    for name, change, kind, left in (
        ("header", lambda data, place: data[: place + 5] + b"\xff" + data[place + 6 :], "corrupt_tar", 2),
        ("cut", lambda data, place: data[: place + 600], "truncated", 2),
        ("cut_header", lambda data, place: data[: place + 100], "truncated", 2),
        ("no_end", lambda data, place: data[:place], "truncated", 2),
    ):
        folder = tmp_path / name
        folder.mkdir()
        tar(folder / "a.tar", files)
        with tarfile.open(folder / "a.tar") as file:
            place = file.getmember("k2.safetensors").offset
        (folder / "a.tar").write_bytes(change((folder / "a.tar").read_bytes(), place))
        index = opened(folder, cache)
        assert (counts(index), len(index)) == ({kind: 1}, left), name
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "a.tar").write_bytes(b"\x1f\x8b" * 3000)
    with pytest.raises(ValueError, match="no usable sample in 1 tar files; .*compressed"):
        opened(tmp_path / "noise", cache)


def test_shards_of_others_are_read(tmp_path: Path, cache: Cache) -> None:
    """As img2dataset and video2dataset write them: no geometry in the metadata, captions in text files, folders and ./
    in names, other companions.
    """
    write_video(tmp_path / "clip.mp4", np.zeros((7, 48, 64, 3), np.uint8), 10)
    video = (tmp_path / "clip.mp4").read_bytes()
    folder = tmp_path / "data"
    folder.mkdir()
    files = {
        "./00/000.mp4": video,
        "./00/000.json": b'{"caption": "a", "url": "u"}',
        "./00/000.txt": b"b",
        "./00/001.txt": b" c\n",
        "./00/001.MP4": video,
        "./00/001.jpg": b"",
    }
    tar(folder / "00000.tar", {**files, "./00/002.mp4": b"no video", "./00/002.json": b"{"})
    index = opened(folder, cache)
    assert [index.key(i) for i in range(len(index))] == ["00/000", "00/001"]
    assert [tuple(entry) for entry in index.entries[["width", "height", "frames", "fps"]].tolist()] == [
        (64, 48, 7, 10.0)
    ] * 2
    assert [index.meta(i).get("caption") for i in range(2)] == ["a", "c"]
    assert counts(index) == {"unreadable": 1} and index.rejected[0].path == "00000.tar[00/002]"


def test_an_index_follows_its_shards(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    writer = ShardWriter(folder, "latents", {"codec": "x"}, shard_count=2)
    for i in range(6):
        writer.add(f"k{i}", {"safetensors": b"x" * 99}, SOUND, position=i)
    writer.close()
    first = opened(folder, cache)
    assert first.kind == "latents" and first.facts == {"codec": "x"} and len(first) == 6
    part = opened(folder / "shard-00000{0,2}.tar", cache)
    assert [part.key(i) for i in range(len(part))] == ["k0", "k1", "k4", "k5"] and part.fingerprint != first.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(shards, "build", lambda *_: pytest.fail("built again"))
        assert opened(folder, cache).fingerprint == first.fingerprint
        assert opened(folder / "shard-00000{0,2}.tar", cache).fingerprint == part.fingerprint
    (folder / "shard-000001.tar").unlink()
    assert len(opened(folder, cache)) == 4
    (folder / "index.npy").write_bytes(b"damaged")
    again = opened(folder, cache)
    assert len(again) == 4 and again.fingerprint != first.fingerprint
    (tmp_path / "moved").mkdir()
    for path in folder.glob("shard*"):
        path.rename(tmp_path / "moved" / path.name)
    assert opened(tmp_path / "moved", cache).fingerprint == again.fingerprint


def test_what_cannot_be_a_data_set_is_one_line(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        opened(tmp_path / "missing", cache)
    with pytest.raises(ValueError, match=r"no \*.tar"):
        opened(tmp_path, cache)
    tar(tmp_path / "a.tar", {"a.mp4": b"x", "a.json": meta(), "b.safetensors": b"x", "b.json": meta()})
    with pytest.raises(ValueError, match="1 latents and 1 videos"):
        opened(tmp_path, cache)
    with pytest.raises(ValueError, match="b.tar"):
        open_index(f"{tmp_path}/{{a,b}}.tar", cache, 0)
    with pytest.raises(ValueError, match="no index"):
        load_index(tmp_path)
    (tmp_path / "file").touch()
    # Where nothing can be written beside the shards, the index goes into the cache.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"data\.cache=.*file: cannot be written"):
        opened(tmp_path, Cache(tmp_path / "file", 0))
