"""Locks and names of writers: many at once, on machines whose process ids are the same, and one that never ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_videogpt.data import locks
from megatron_videogpt.data.locks import locked, partial_name
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards import dataset as shards
from megatron_videogpt.data.shards.index import load, save
from megatron_videogpt.data.shards.scan import ENTRY, Part
from megatron_videogpt.errors import UserError

NODES = 8


@pytest.fixture(autouse=True)
def one_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often give the same number to the same program on every machine."""
    monkeypatch.setattr(os, "getpid", lambda: 17)


def at_once(action: Callable[[int], Any]) -> list[Any]:
    """`action(n)` in `NODES` threads that begin together."""
    start = threading.Barrier(NODES)
    with ThreadPoolExecutor(NODES) as pool:
        return [
            done.result() for done in [pool.submit(lambda n: (start.wait(), action(n))[1], n) for n in range(NODES)]
        ]


def test_writers_of_the_same_index_do_not_take_each_others_files(tmp_path: Path) -> None:
    entries = np.zeros(3000, ENTRY)
    entries["key_size"], entries["frames"] = 1, 1
    part, place = Part(entries, b"k" * 3000, []), str(tmp_path / "index")

    def write(node: int) -> None:
        for _ in range(10):
            save(place, [("a.tar", 5)], "videos", {}, part)

    at_once(write)
    index = load(place, str(tmp_path), [("a.tar", 5)], Cache(tmp_path / "cache", 0))
    assert index is not None and len(index) == 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        "index.keys",
        "index.npy",
        "index.rejected.jsonl",
        "index.tables",
        "index.tables.npy",
    ]


def test_nodes_with_caches_of_their_own_build_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, built = tmp_path / "data", []
    folder.mkdir()
    meta = json.dumps({"width": 32, "height": 32, "frames": 9, "fps": 10}).encode()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in (("x.json", meta), ("x.mp4", b"video")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(shards, "build", lambda *a, real=shards.build: (built.append(a), real(*a))[1])
    found = at_once(lambda node: shards.open_index(str(folder), Cache(tmp_path / f"node{node}", 0), workers=0))
    assert len(built) == 1 and {index.fingerprint for index in found} == {found[0].fingerprint} and len(found[0]) == 1


def test_files_of_a_shared_cache_are_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)

    def keep(node: int) -> None:
        for n in range(20):
            cache._keep(cache._place(f"file {n}"), bytes([n]) * 5000)

    at_once(keep)
    files = [path for path in (tmp_path / "members").glob("??/*")]
    assert len(files) == 20 and all(
        len(path.read_bytes()) == 5000 and len(set(path.read_bytes())) == 1 for path in files
    )


def test_names_differ_between_equal_process_ids(tmp_path: Path) -> None:
    assert len({partial_name(tmp_path / "index.npy") for _ in range(100)}) == 100
    assert partial_name(tmp_path / "index.npy").parent == tmp_path


def test_a_lock_that_is_never_given_back_is_told_with_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "TELL", 0.1)
    path = tmp_path / ".index.lock"
    with locked(path, 0, "building the index of /data"):
        with pytest.raises(UserError) as caught, locked(path, 0.3, "building the index of /data"):
            raise AssertionError("two at once")
        with (
            pytest.raises(UserError, match=r"locked by process 17 on \S+ since .*, which is preparing there; wait"),
            locked(path, 0, "preparing there"),
        ):
            raise AssertionError("two at once")
    line = str(caught.value)
    assert (
        line.startswith(f"{path}: locked by process 17 on ")
        and "building the index of /data, for more than 0 s" in line
        and "remove this file" in line
    )
    assert "waiting for process 17" in caplog.text
    # Free again, as it is when its holder dies.
    with locked(path, 0, "anything"):
        pass


def test_where_there_are_no_locks_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", 5, "building"), locked(tmp_path / "lock", 5, "building"):
        assert "this file system has no locks (Function not implemented)" in caplog.text


def test_a_lock_in_a_folder_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="gone/lock: No such file or directory"),
        locked(tmp_path / "gone" / "lock", 0, "anything"),
    ):
        pass


def test_a_file_that_goes_while_its_folder_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the partial index of another node, which takes its name."""
    (tmp_path / "a.tar").write_bytes(b"123")
    (tmp_path / "index.partial").write_bytes(b"1")

    @contextlib.contextmanager
    def listed(path: Path, real: Any = os.scandir) -> Iterator[list[Any]]:
        with real(path) as found:
            entries = list(found)
        (tmp_path / "index.partial").unlink()
        yield entries

    monkeypatch.setattr(os, "scandir", listed)
    assert shards.sizes_in(str(tmp_path)) == {"a.tar": 3}
