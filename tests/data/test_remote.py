"""Shards on an S3-compatible server (moto), read through fsspec: equal to local files, kept within a size limit, errors
in one line.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import random
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_videogpt.data import remote
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_clip
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.dataset import open_index
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index
from megatron_videogpt.data.video.container import Blob
from tests.clips import BIRD, ODD, SMALL, SOUND, TRAILER

pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]'")
server = pytest.importorskip("moto.server", reason="pip install s3fs 'moto[server]'")
import s3fs  # noqa: E402

NAMES = (SMALL, BIRD, TRAILER, SOUND, ODD)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A server with the bucket "bucket"; its address and keys are in the environment, as a user's would be."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    system.invalidate_cache()
    system.rm("bucket", recursive=True)  # the server's memory outlives it
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def folder(videos: Path, tmp_path: Path) -> Path:
    """Two shards of real clips, with their index."""
    writer = ShardWriter(tmp_path / "data", "videos", shard_count=3)
    for i, name in enumerate(NAMES):
        info = probe(videos / name)
        key, suffix = name.split(".")
        meta = {
            "width": info.width,
            "height": info.height,
            "frames": info.frames,
            "fps": info.fps,
            "caption": f"clip {i}",
        }
        writer.add(key, {suffix: (videos / name).read_bytes()}, meta, position=i)
    writer.close()
    merge_index(tmp_path / "data", "videos")
    return tmp_path / "data"


def kept(cache: Cache) -> list[Path]:
    return [path for path in (Path(cache.folder) / "members").glob("??/*")]


def test_members_equal_local_ones_with_and_without_an_index(
    storage: s3fs.S3FileSystem, folder: Path, videos: Path, tmp_path: Path
) -> None:
    local = open_index(str(folder), Cache(tmp_path / "none", 0), 0)
    storage.put(f"{folder}/", "bucket/indexed/", recursive=True)
    for path in folder.glob("*.tar"):
        storage.put(str(path), f"bucket/bare/{path.name}")
    for name in ("indexed", "bare", "bare/shard-00000{0..1}.tar"):
        cache = Cache(tmp_path / name.replace("/", "_"), 10**9)
        index = open_index(f"s3://bucket/{name}", cache, 0)
        assert index.entries.tobytes() == local.entries.tobytes() and bytes(index.keys) == bytes(local.keys)
        assert index.fingerprint == local.fingerprint
        built = (
            list((Path(cache.folder) / "indexes").rglob("index*.json"))
            if (Path(cache.folder) / "indexes").is_dir()
            else []
        )
        assert len(built) == (0 if name == "indexed" else 1)
        for i, video in enumerate(NAMES):
            assert index.data(i) == (videos / video).read_bytes()
            assert index.meta(i)["caption"] == f"clip {i}"
        clip = read_clip(Blob(index.key(1), index.data(1)), [3, 9], 64, 16)
        assert (clip == read_clip(videos / NAMES[1], [3, 9], 64, 16)).all()
    assert not storage.exists("bucket/bare/index.json")
    # What was read once needs no server: the second reader finds it in the folder.
    storage.rm("bucket/indexed", recursive=True)
    assert Cache(tmp_path / "indexed", 10**9).read(
        index.shard_url(0).replace("bare", "indexed"), int(index.entries[0]["offset"]), int(index.entries[0]["size"])
    )


def test_metadata_that_is_missing_is_found_by_reading(storage: s3fs.S3FileSystem, videos: Path, tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for name in NAMES[:2]:
            file.add(videos / name, name)
    storage.pipe("bucket/plain/a.tar", target.getvalue())
    index = open_index("s3://bucket/plain", Cache(tmp_path / "cache", 10**9), 0)
    assert index.entries["frames"].tolist() == [120, 63] and index.entries["width"].tolist() == [176, 640]


def test_the_cache_keeps_to_its_limit_and_drops_the_longest_unused(storage: s3fs.S3FileSystem, tmp_path: Path) -> None:
    """Parts of 1000 bytes; at most ten are kept, and one that is read again and again is never dropped."""
    data = random.Random(0).randbytes(40_000)
    storage.pipe("bucket/file", data)
    cache = Cache(tmp_path / "cache", 10_000)
    for i in range(40):
        assert cache.read("s3://bucket/file", 1000 * i, 1000) == data[1000 * i : 1000 * (i + 1)]
        assert sum(path.stat().st_size for path in kept(cache)) <= 10_000
        time.sleep(0.01)  # file systems' clocks tick
        assert cache.read("s3://bucket/file", 0, 1000) == data[:1000]
    assert 5 <= len(kept(cache)) <= 10
    storage.rm("bucket/file")
    assert cache.read("s3://bucket/file", 0, 1000) == data[:1000]
    assert cache.read("s3://bucket/file", 39_000, 1000) == data[39_000:]
    with pytest.raises(BadVideo, match="no such file"):
        cache.read("s3://bucket/file", 1000, 1000)
    for path in kept(cache):
        path.write_bytes(b"cut")  # a damaged file is read anew
    with pytest.raises(BadVideo, match="no such file"):
        cache.read("s3://bucket/file", 0, 1000)


def test_what_is_larger_than_the_cache_is_read_and_not_kept(storage: s3fs.S3FileSystem, tmp_path: Path) -> None:
    storage.pipe("bucket/file", bytes(3000))
    cache = Cache(tmp_path / "cache", 1000)
    assert len(cache.read("s3://bucket/file", 0, 3000)) == 3000 and not kept(cache)
    with pytest.raises(BadVideo, match="ends early: 100 of 500") as caught:
        cache.read("s3://bucket/file", 2900, 500)
    assert caught.value.kind == "truncated"


def _read_many(folder: str, seed: int, wrong, environment: dict[str, str]) -> None:  # noqa: ANN001
    os.environ.update(environment)  # the fork server may be older than the server's address
    cache = Cache(folder, 20_000)
    rng = random.Random(seed)
    data = random.Random(0).randbytes(40_000)
    for _ in range(60):
        place = rng.randrange(39)
        if (
            cache.read("s3://bucket/file", 1000 * place, 1500 if place % 2 else 1000)
            != data[1000 * place : 1000 * place + (1500 if place % 2 else 1000)]
        ):
            wrong.value += 1


def test_several_processes_share_a_cache(storage: s3fs.S3FileSystem, tmp_path: Path) -> None:
    storage.pipe("bucket/file", random.Random(0).randbytes(40_000))
    context = multiprocessing.get_context("forkserver")
    wrong = context.Value("i", 0)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    processes = [
        context.Process(target=_read_many, args=(str(tmp_path / "cache"), seed, wrong, environment))
        for seed in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0] and wrong.value == 0
    cache = Cache(tmp_path / "cache", 20_000)
    assert sum(path.stat().st_size for path in kept(cache)) <= 20_000
    assert not [path for path in kept(cache) if path.suffix == ".partial"]


def _open(folder: str, cache: str, started, found) -> None:  # noqa: ANN001
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("megatron_videogpt.data.shards.dataset").addHandler(handler)
    logging.getLogger("megatron_videogpt.data.shards.dataset").setLevel(logging.INFO)
    started.wait(100)
    index = open_index(folder, Cache(cache, 10**9), 0)
    found.put((index.fingerprint, sum("building" in text for text in records)))


def test_one_process_builds_the_index_and_the_others_wait(folder: Path, tmp_path: Path) -> None:
    expected = open_index(str(folder), Cache(tmp_path / "cache", 0), 0).fingerprint
    for path in folder.glob("index*"):
        path.unlink()
    context = multiprocessing.get_context("forkserver")
    started, found = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_open, args=(str(folder), str(tmp_path / "cache"), started, found)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    results = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert {fingerprint for fingerprint, _ in results} == {expected} and sum(built for _, built in results) == 1


def test_processes_build_the_same_index(videos: Path, tmp_path: Path) -> None:
    """Ten shards of videos without metadata, one of which is none."""
    for shard in range(10):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for name in NAMES[:2]:
                file.add(videos / name, f"{shard}_{name}")
            file.add(__file__, "bad.mp4")
    found = []
    for workers in (2, 0):
        index = open_index(str(tmp_path), Cache(tmp_path / "cache", 0), workers)
        found.append(
            (index.fingerprint, index.entries.tobytes(), [(error.path, error.kind) for error in index.rejected])
        )
        for path in tmp_path.glob("index*"):
            path.unlink()
    assert found[0] == found[1] and found[0][2] == [(f"{shard}.tar[bad]", "unreadable") for shard in range(10)]


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_index(str(folder), Cache(tmp_path / "cache", 0), 0).fingerprint
    for path in folder.glob("index*"):
        path.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who can write anywhere
    assert open_index(str(folder), Cache(tmp_path / "cache", 0), 0).fingerprint == expected
    assert not list(folder.glob("index*")) and len(list((tmp_path / "cache" / "indexes").rglob("index.npy"))) == 1


def test_storage_that_fails_is_one_line(
    storage: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", 10**6)
    for url in ("s3://nobucket/data", "s3://bucket/nothing", "s3://bucket/nothing/a-{0..3}.tar"):
        with pytest.raises(ValueError, match="data.path=s3://") as error:
            open_index(url, cache, 0)
        assert "\n" not in str(error.value)
    with pytest.raises(BadVideo) as caught:
        cache.read("s3://nobucket/data/a.tar", 0, 10)
    assert caught.value.kind == "missing" and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Protocol not known"):
        open_index("nosuch://bucket/data", cache, 0)


def test_a_server_that_is_not_there_is_asked_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with pytest.raises(BadVideo, match="no answer after 3 attempts") as caught:
        Cache(tmp_path, 10).read("s3://bucket/a.tar", 0, 10)
    assert pauses == list(remote.PAUSES) and caught.value.kind == "missing" and "\n" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()
