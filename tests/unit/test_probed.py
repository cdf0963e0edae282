"""What is found out about video files is found out once: kept by path, size and time of change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from megatron_videogpt.codec.geometry import codec_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data import decode
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import VideoInfo, probe
from megatron_videogpt.data.jobs import FileJob
from megatron_videogpt.data.plans import SamplePlan
from megatron_videogpt.data.sources import probed
from megatron_videogpt.data.sources.datasets import open_folder
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.sources.probed import probe_files
from megatron_videogpt.data.video import access
from megatron_videogpt.data.video.container import DEFAULTS, Limits
from tests.numbered import encode, number_of
from tests.unit.test_odd_files import EXPECTED, ODD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "videos"
    place.mkdir()
    for name in ("xvid_b.avi", "cut_open.mkv"):
        shutil.copyfile(ODD / name, place / name)
    (place / "plain.mp4").write_bytes(encode("mp4", "libx264", range(30)))
    (place / "text.mp4").write_text("no video " * 100)
    return place


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were decoded whole; what a process remembers is forgotten first."""
    names: list[str] = []
    access.forget()
    original = decode.learn

    def learn(video: str, limits: Limits) -> object:
        names.append(Path(video).name)
        return original(video, limits)

    monkeypatch.setattr(decode, "learn", learn)
    return names


def found(files: list[Path], cache: Path | None, limits: Limits = DEFAULTS) -> list[VideoInfo | str]:
    access.forget()
    infos = probe_files(files, limits, cache, workers=1)
    return [info.kind if isinstance(info, BadVideo) else info for info in infos]


def test_a_file_is_decoded_once_until_it_changes(folder: Path, tmp_path: Path, learned: list[str]) -> None:
    files, cache = sorted(folder.iterdir()), tmp_path / "cache"
    first = found(files, cache)
    assert [getattr(info, "frames", info) for info in first] == [76, 30, "unreadable", 98]
    assert sorted(learned) == ["cut_open.mkv", "xvid_b.avi"]
    learned.clear()
    again = found(files, cache)
    assert again == first and not learned
    assert [bool(getattr(info, "table", b"")) for info in again] == [True, False, False, True]
    os.utime(folder / "xvid_b.avi", ns=(1, 1))
    assert found(files, cache) == first and learned == ["xvid_b.avi"]
    learned.clear()
    assert found(files, cache, Limits(frames=90))[3] == "too_large"
    assert learned == ["xvid_b.avi"]


def test_another_rule_counts_anew(
    folder: Path, tmp_path: Path, learned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [folder / "cut_open.mkv"]
    found(files, tmp_path / "cache")
    monkeypatch.setattr(probed, "RULE", probed.RULE + 1)
    found(files, tmp_path / "cache")
    assert learned == ["cut_open.mkv"] * 2


@pytest.mark.parametrize("obstacle", ["none", "no cache", "damaged", "a file in its place"])
def test_without_a_cache_it_only_takes_longer(
    folder: Path, tmp_path: Path, learned: list[str], obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache: Path | None = tmp_path / "cache"
    if obstacle == "no cache":
        cache = None
    elif obstacle == "a file in its place":
        (tmp_path / "cache").write_text("")
    elif obstacle == "damaged":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "probed.sqlite").write_bytes(b"no database" * 1000)
    files = [folder / "cut_open.mkv"]
    first, second = found(files, cache), found(files, cache)
    assert len(learned) == (1 if obstacle == "none" else 2)
    assert first == second == [probe(files[0])]
    assert ("probed.sqlite" in caplog.text) == (obstacle in ("damaged", "a file in its place"))


def test_many_files_are_looked_into_under_a_lock_and_by_processes(tmp_path: Path) -> None:
    place = tmp_path / "videos"
    place.mkdir()
    for number in range(probed.FEW + 2):
        shutil.copyfile(ODD / "cut_open.mkv", place / f"{number:03d}.mkv")
    files = sorted(place.iterdir())
    infos = found(files, tmp_path / "cache")
    assert {info.frames for info in infos if isinstance(info, VideoInfo)} == {76} and len(infos) == len(files)
    assert found(files, tmp_path / "cache") == infos


def test_training_reads_through_the_tables(folder: Path, tmp_path: Path, learned: list[str]) -> None:
    """Jobs of a folder carry the tables, so that no reader decodes from the start."""
    config = DataConfig(source="videos", path=str(folder), cache=str(tmp_path / "cache"), min_side=16, longest_side=64)
    open_source(config, codec_geometry(CodecConfig()))
    collection, rejected = open_folder(config, str(folder))
    assert [Path(error.path).name for error in rejected] == ["text.mp4"]
    place = collection.paths.index("xvid_b.avi")
    plan = SamplePlan(0, 0, 0, place, (3, 50, 97), 1, (3,), (64, 64))
    job = collection.job(plan, place)
    assert isinstance(job, FileJob) and job.table == probe(folder / "xvid_b.avi").table
    assert [number_of(frame, 4) for frame in job.read().pixels] == [EXPECTED["xvid_b.avi"][n] for n in (3, 50, 97)]
