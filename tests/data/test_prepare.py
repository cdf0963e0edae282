"""Shards from videos: bytes, metadata and order against the sources; any number of workers, kills and repeats give the
same folder; scenes bit for bit.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path

import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe
from megatron_videogpt.data.locks import locked
from megatron_videogpt.data.prepare.listings import Listing, Row
from megatron_videogpt.data.prepare.run import LOCK, Options, prepare
from megatron_videogpt.data.prepare.video import Ready, read_row
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.errors import UserError
from tests.clips import BIRD, CINEPAK, ODD, SCENES, SMALL, SOUND, TRAILER
from tests.parallel.launch import interpreter, run, start

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = (CINEPAK, BIRD, ODD, SOUND, SMALL, SCENES)


def tool(*words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the command line tool, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["data", "prepare", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an output but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def samples(folder: Path) -> dict[str, tuple[str, bytes, dict]]:
    """Extension, bytes and metadata by key, read with Python's tarfile."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[suffix] = file.read()
    return {
        key: (
            next(s for s in files if s != "json"),
            next(files[s] for s in files if s != "json"),
            json.loads(files["json"]),
        )
        for key, files in found.items()
    }


@pytest.fixture
def source(videos: Path, tmp_path: Path) -> Path:
    """See `mixed_folder`."""
    return mixed_folder(videos, tmp_path / "source")


def mixed_folder(videos: Path, folder: Path) -> Path:
    """Real videos of all containers in two folders, and files that are no good."""
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        shutil.copyfile(videos / name, folder / ("more" if i % 2 else ".") / name)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    data = (videos / TRAILER).read_bytes()
    (folder / "torn.mp4").write_bytes(data[: len(data) // 2])
    return folder


def test_shards_hold_the_files_and_what_is_known_of_them(source: Path, tmp_path: Path) -> None:
    """The tool with three workers and this process alone write the same bytes."""
    done = run(
        interpreter("tools/prepare_videos.py", source, "--output", tmp_path / "out", "--workers", 3, "--shard-mb", 0.2)
    )
    assert done.returncode == 0, done.stderr
    found = samples(tmp_path / "out")
    paths = sorted(path for path in source.rglob("*") if path.name in NAMES)
    assert list(found) == [str(path.relative_to(source).with_suffix("")).replace("/", "_") for path in paths]
    for path, (suffix, data, meta) in zip(paths, found.values()):
        info = probe(path)
        assert (f".{suffix}", data) == (path.suffix, path.read_bytes())
        assert {name: meta[name] for name in ("width", "height", "frames")} == {
            "width": info.width,
            "height": info.height,
            "frames": info.frames,
        }
        assert meta["duration"] == pytest.approx(info.frames / info.fps) and meta["fps"] == pytest.approx(info.fps)
        assert meta["source"] == str(path.relative_to(source))
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(line["name"], line["row"]) for line in lines] == [("empty.mp4", 2), ("text.mp4", 7), ("torn.mp4", 8)]
    assert (
        lines[0]["kind"] == "no_frames"
        and lines[1]["kind"] == "unreadable"
        and "1 rejected: no_frames" in " ".join(done.stdout.split())
    )
    report, worked = prepare(Options((str(source),), shard_mb=0.2), tmp_path / "again", 0, 60)
    assert worked and contents(tmp_path / "again") == contents(tmp_path / "out")
    assert (
        report.videos == len(NAMES)
        and report.frames == sum(probe(path).frames for path in paths)
        and sum(report.rejected.values()) == 3
    )
    assert report.shards == len(list((tmp_path / "out").glob("*.tar"))) > 2
    index = load_index(tmp_path / "out")
    assert [index.key(i) for i in range(len(index))] == list(found) and index.data(0) == paths[0].read_bytes()


def test_a_finished_folder_is_left_alone_and_another_command_refused(source: Path, tmp_path: Path) -> None:
    options = ["--output", tmp_path / "out", "--workers", 0]
    assert tool(source, *options)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    code, out, _ = tool(source, *options, "--timeout", 5)
    assert code == 0 and "nothing to do" in out
    for words in ([source, *options, "--min-frames", 17], [source / "more", *options]):
        code, _, err = tool(*words)
        assert code == 2 and err.count("\n") == 1 and "another command" in err
    shutil.copyfile(source / NAMES[0], source / "new.avi")
    code, _, err = tool(source, *options)
    assert code == 2 and "have changed since (rows = 9 and now rows = 10)" in err
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")
    }


def test_one_process_at_a_time_writes_to_a_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        locked(tmp_path / "out" / LOCK, 0, "preparing"),
        pytest.raises(UserError, match=r"prepare.lock: locked by process \d+ on .*, which is preparing videos there;"),
    ):
        prepare(Options((str(source),)), tmp_path / "out", 0, 60)
    with pytest.raises(ValueError, match="no video in it"):
        prepare(Options((str(tmp_path / "out"),)), tmp_path / "none", 0, 60)
    assert not (tmp_path / "none").exists()


def slowly(row: Row, options: Options) -> list[Ready] | None:
    """As `read_row`, but slow enough to be killed between two shards."""
    time.sleep(0.1)
    return read_row(row, options)


PROGRAM = """
import sys
from pathlib import Path
from megatron_videogpt.data.locks import locked
from megatron_videogpt.data.prepare.run import LOCK, Options, prepare
from tests.data.test_prepare import slowly
if __name__ == "__main__":
    prepare(Options((sys.argv[1],), shard_count=2), Path(sys.argv[2]), 2, 60, read=slowly)
"""


def test_killed_runs_end_in_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """Killed after each of the first two shards, and then continued with another number of workers."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare(Options((str(source),), shard_count=2), whole, 0, 60)
    for shards in (1, 2):
        process = start(interpreter(program, source, out))
        while len(list(out.glob("*.tar"))) < shards and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "report.json").exists()
    (out / "shard-000099.tar.partial").write_bytes(b"left by a kill")
    with open(out / "rejected.jsonl", "a") as file:
        file.write('{"name": "half a li')
    report, worked = prepare(Options((str(source),), shard_count=2), out, 1, 60)
    assert worked and report.videos == len(NAMES)
    assert contents(out) == contents(whole)


def troublesome(row: Row, options: Options) -> list[Ready] | None:
    """Two of the videos cost their process."""
    if row.name == ODD:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "bird" in row.name:
        time.sleep(3600)
    return read_row(row, options)


def test_files_that_crash_or_stall_their_reader_are_left_out(source: Path, tmp_path: Path) -> None:
    report, _ = prepare(Options((str(source),), listing=Listing()), tmp_path / "out", 2, 6, read=troublesome)
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    kinds = {line["name"]: line["kind"] for line in lines}
    assert kinds[ODD] == "crashed" and kinds[f"more/{BIRD}"] == "stalled"
    assert len(samples(tmp_path / "out")) == report.videos == len(NAMES) - 2
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)


def test_limits_filter_and_nothing_usable_is_an_error(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(Options((str(source),), min_side=130, max_aspect=2.0, min_frames=63), out, 0, 60)
    kinds = {
        json.loads(line)["name"]: json.loads(line)["kind"] for line in (out / "rejected.jsonl").read_text().splitlines()
    }
    # 160x128 is too small, 320x136 too long; 62 frames are too few.
    expected = {f"more/{SCENES}": "too_elongated", ODD: "too_short", CINEPAK: "too_small"}
    assert {name: kinds.get(name) for name in expected} == expected
    assert sorted(samples(out)) == ["cars_small", "more_intel_sign_bird", "more_sound"]
    code, _, err = tool(source, "--output", tmp_path / "none", "--workers", 0, "--min-side", 2000)
    assert code == 2 and "no video can be used, 9 were rejected" in err.splitlines()[-1]
    code, _, err = tool(source, "--output", source / "shards")
    assert code == 2 and "inside the source" in err and not (source / "shards").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    assert "thesis.tex" in tool(source, "--output", tmp_path / "other")[2]
    report, _ = prepare(Options((str(source),), limit=3), tmp_path / "limited", 0, 60)
    assert report.videos == 2  # the first of the three is empty


def test_shards_are_sharded_anew_with_their_metadata(source: Path, tmp_path: Path) -> None:
    """Others' shards: captions in JSON or text, metadata that is none, no metadata at all."""
    (tmp_path / "others").mkdir()
    meta = {
        "a": '{"caption": "one", "url": "u", "width": 1}',
        "b": "{no JSON",
        "c": None,
        "d": '{"caption": "four", "score": 3}',
    }
    with tarfile.open(tmp_path / "others/00000.tar", "w") as tar:
        for (key, text), name in zip(meta.items(), sorted(NAMES)):
            (tmp_path / f"{key}.json").write_text(text or "")
            (tmp_path / f"{key}.txt").write_text(f"text {key}")
            tar.add(next(source.rglob(name)), f"{key}.{name.rpartition('.')[2]}")
            if text is not None:
                tar.add(tmp_path / f"{key}.json", f"{key}.json")
            tar.add(tmp_path / f"{key}.txt", f"{key}.txt")
    (tmp_path / "others/00001.tar").write_bytes(b"no tar file" * 100)
    (tmp_path / "others/00002.tar").write_bytes((tmp_path / "others/00000.tar").read_bytes()[:2000])
    prepare(Options((str(tmp_path / "others"),)), tmp_path / "out", 0, 60)
    found = samples(tmp_path / "out")
    assert list(found) == ["a", "b", "c", "d"]
    assert [data for _, data, _ in found.values()] == [
        next(source.rglob(name)).read_bytes() for name in sorted(NAMES)[:4]
    ]
    assert [meta["caption"] for _, _, meta in found.values()] == ["one", "text b", "text c", "four"]
    assert found["a"][2]["url"] == "u" and found["a"][2]["width"] == probe(next(source.rglob(sorted(NAMES)[0]))).width
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    kinds = {(line["name"].partition("[")[0], line["kind"]) for line in lines}
    assert kinds == {("00000.tar", "metadata"), ("00001.tar", "corrupt_tar"), ("00002.tar", "truncated")}
    prepare(
        Options((str(tmp_path / "out/shard-000000.tar"),), listing=Listing(where=("score>2",))),
        tmp_path / "twice",
        0,
        60,
    )
    twice = samples(tmp_path / "twice")
    assert list(twice) == ["d"] and twice["d"] == found["d"]


def test_rows_that_cannot_be_read_say_why(source: Path, tmp_path: Path) -> None:
    options = Options((str(source),))
    for name, kind in (("gone.mp4", "missing"), ("pipe.mp4", "unreadable")):
        if name == "pipe.mp4":
            os.mkfifo(tmp_path / name)
        with pytest.raises(BadVideo) as error:
            read_row(Row(str(tmp_path / name), name, "key", ".mp4"), options)
        assert error.value.kind == kind
