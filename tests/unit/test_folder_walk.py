"""Folders as people have them: links, loops, macOS's companions of files, folders nobody may read; in training,
preparation and sampling.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.prepare.listings import Listing, Row, list_rows
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.dataset import open_index
from megatron_videogpt.data.sources import files
from megatron_videogpt.data.sources.files import EXTENSIONS, list_videos, walk
from megatron_videogpt.data.sources.open import usable_videos
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.sample.prompts import find_sources

CONFIG = DataConfig(
    source="videos", longest_side=32, size_multiple=16, min_side=8, frames=4, frame_interval=(1, 1), clips=(1, 2)
)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked at")
    return folder


def relative(paths: Any, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def prepared(folder: Path, **options: Any) -> list[str]:
    """Names in the listing of preparation."""
    rows = list(list_rows([str(folder)], Listing(**options)))
    assert all(isinstance(row, Row) for row in rows)
    return [row.name for row in rows if isinstance(row, Row)]


def video(path: Path, frames: int = 6, level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path.parent / "video.partial.mp4", np.full((frames, 32, 32, 3), level, np.uint8), 24)
    return (path.parent / "video.partial.mp4").rename(path)


@pytest.mark.parametrize("top", ["videos", "."])
def test_without_links_the_order_is_that_of_paths(tmp_path: Path, top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set's fingerprint depends on it."""
    names = (
        "b.mp4 a.mp4 a/z.MKV a/b.avi a-b/c.mp4 a.b/c.mp4 a/B.mp4 A.mp4 a1/x.y.webm a/a/a.mp4 é.mp4 z/.h.mp4 .d/e.mp4"
    )
    touch(tmp_path / "videos", *names.split(), "x.txt", ".mp4", "mp4", "..mp4", "a b.mp4")
    (tmp_path / "videos" / "empty.mp4").mkdir()
    monkeypatch.chdir(tmp_path / "videos" if top == "." else tmp_path)
    root = Path(top)
    expected = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    assert list_videos(top) == list(walk(root, EXTENSIONS)) == expected and len(expected) == 15
    assert relative(walk(root, EXTENSIONS, hidden=False), root) == [
        "A.mp4",
        "a/B.mp4",
        "a/a/a.mp4",
        "a/b.avi",
        "a/z.MKV",
        "a b.mp4",
        "a-b/c.mp4",
        "a.b/c.mp4",
        "a.mp4",
        "a1/x.y.webm",
        "b.mp4",
        "é.mp4",
    ]


@pytest.fixture
def linked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """A folder with links of all kinds."""
    caplog.set_level(logging.INFO)
    root, other = touch(tmp_path / "root", "m.mp4", "sub/b.mp4"), touch(tmp_path / "other", "c.mp4", "in/d.mp4")
    touch(tmp_path / "far", "f.mp4")
    for link, target in {
        root / "again": root / "sub",  # the folder itself counts, though its name comes later
        root / "first": other,
        root / "second": other,
        root / "sub" / "loop": root,
        other / "in" / "loop": other,
        other / "far": tmp_path / "far",
        root / "z": tmp_path / "far",  # one link counts, though a path with two comes earlier
        root / "file.mp4": other / "c.mp4",  # only folders are listed once
        root / "gone": tmp_path / "gone",
        root / "gone.mp4": tmp_path / "gone.mp4",
        root / "self.mp4": root / "self.mp4",
    }.items():
        link.symlink_to(target)
    return root


LINKED = ["file.mp4", "first/c.mp4", "first/in/d.mp4", "m.mp4", "sub/b.mp4", "z/f.mp4"]
ONE_LINE = "left out 5 linked folders, leading to what is listed already or in a circle:"


def test_links_are_followed_once_and_loops_end(linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert relative(list_videos(linked), linked) == LINKED
    assert [record.getMessage() for record in caplog.records] == [
        f"{linked}: {ONE_LINE} {linked}/again, {linked}/first/far, {linked}/first/in/loop, {linked}/second, "
        f"{linked}/sub/loop"
    ]


def test_preparation_and_sampling_follow_links_as_training_does(linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert prepared(linked) == prepared(linked) == LINKED
    assert [ONE_LINE in record.getMessage() for record in caplog.records] == [True], "said once, though listed twice"
    assert relative([source.path for source in find_sources([linked])], linked) == LINKED
    # Results are no prompts, wherever the link to them is.
    found = find_sources([linked], output=linked.parent / "far")
    assert relative([source.path for source in found], linked) == LINKED[:-1]
    (linked.parent / "table.txt").write_text("d.mp4\nf.mp4\n")
    rows = list(list_rows([str(linked.parent / "table.txt")], Listing(root=str(linked), search=True)))
    assert [row.name for row in rows if isinstance(row, Row)] == ["first/in/d.mp4", "z/f.mp4"]


def test_a_link_out_of_the_folder_into_a_folder_above_it(tmp_path: Path) -> None:
    touch(tmp_path, "data/mine/a.mp4", "data/theirs/b.mp4")
    (tmp_path / "data" / "mine" / "all").symlink_to("..")
    assert relative(list_videos(tmp_path / "data" / "mine"), tmp_path / "data" / "mine") == [
        "a.mp4",
        "all/theirs/b.mp4",
    ]
    (tmp_path / "link").symlink_to(tmp_path / "data" / "mine")
    assert relative(list_videos(tmp_path / "link"), tmp_path / "link") == ["a.mp4", "all/theirs/b.mp4"]


def test_a_linked_folder_is_trained_under_the_path_of_its_link(tmp_path: Path) -> None:
    video(tmp_path / "other" / "c.mp4"), video(tmp_path / "root" / "m.mp4", 9)
    (tmp_path / "root" / "first").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    usable = usable_videos(CONFIG, build_codec(CodecConfig()), str(tmp_path / "root"), 4, 9)
    folder = usable.collection
    assert folder.paths == ("first/c.mp4", "m.mp4") and folder.name(0) == f"{tmp_path}/root/first/c.mp4"
    sizes = [(tmp_path / "root" / path).stat().st_size for path in folder.paths]
    lines = f"first/c.mp4\0(32, 32, 6, 24.0, {sizes[0]})\nm.mp4\0(32, 32, 9, 24.0, {sizes[1]})\n"
    assert folder.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_folders_that_cannot_be_read_are_named_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = touch(tmp_path / "root", "a.mp4", "closed/b.mp4", "sub/closed/c.mp4", "sub/d.mp4")
    scandir, closed = os.scandir, ["closed"]

    def guarded(path: str) -> Any:
        # Modes do not stop root, as whom these tests may run.
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", guarded)
    assert relative(list_videos(root), root) == ["a.mp4", "sub/d.mp4"] and prepared(root) == ["a.mp4", "sub/d.mp4"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: left out 2 folders that cannot be listed: {root}/closed (Permission denied), "
        f"{root}/sub/closed (Permission denied)"
    ]
    closed.append("root")
    for look in (lambda: list_videos(root), lambda: prepared(root), lambda: find_sources([root])):
        with pytest.raises(ValueError, match=rf"^{root}: cannot be listed \(Permission denied\); make it readable"):
            look()


def test_companions_that_macos_leaves_are_no_videos(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.mp4", "._a.mp4", "sub/._b.png", "sub/b.png", "__MACOSX/sub/c.mp4")
    assert relative(list_videos(root), root) == ["a.mp4"] and prepared(root) == ["a.mp4"]
    assert [str(source.path) for source in find_sources([root])] == [f"{root}/a.mp4", f"{root}/sub/b.png"]
    (root / "a.mp4").unlink()
    with pytest.raises(ValueError, match="no videos in it"):
        list_videos(root)


def test_companions_in_a_shard_are_left_alone(tmp_path: Path) -> None:
    data, meta = b"x" * 9, json.dumps({"width": 8, "height": 8, "frames": 3}).encode()
    members = {"._a.safetensors": b"mac", "a.safetensors": data, "._a.json": b"mac", "a.json": meta}
    members |= {"in/b.safetensors": data, "in/b.json": meta, "in/._b.json": b"", "__MACOSX/in/._b.safetensors": data}
    members |= {"__MACOSX/in/c.safetensors": data, "._odd": b"", ".hidden.mp4": data, "d.exe": b""}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index = open_index(str(tmp_path), Cache(tmp_path / "cache", 10**6), 0)
    assert [index.key(i) for i in range(len(index))] == ["a", "in/b"]
    # What has no key is told apart from what has no known ending.
    assert [(error.path, error.reason.split(" (")[0]) for error in index.rejected] == [
        ("x.tar[.hidden.mp4]", "no key before the first dot of its name"),
        ("x.tar[d.exe]", "extension .exe is no video's"),
    ]
