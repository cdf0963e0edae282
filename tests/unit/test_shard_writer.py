"""Writing shards: interrupted, by source, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index

from .test_shards import SOUND, fill


def test_an_interrupted_writer_goes_on_after_its_last_shard(tmp_path: Path) -> None:
    whole, broken = (
        ShardWriter(tmp_path / "whole", "videos", shard_count=4),
        ShardWriter(tmp_path / "broken", "videos", shard_count=4),
    )
    assert broken.resume_position == -1
    fill(whole, 0, 11)
    whole.close()
    fill(broken, 0, 7)  # never closed: three samples of the second shard are lost
    assert (tmp_path / "broken" / "shard-000001.tar.partial").is_file()
    again = ShardWriter(tmp_path / "broken", "videos", shard_count=4)
    assert again.resume_position == 3
    fill(again, 4, 11)
    again.close()
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_samples_of_one_source_stay_in_one_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "videos", shard_count=2)
    for i, position in enumerate([0, 1, 1, 1, 2, 3]):
        writer.add(f"k{i}", {"mp4": b"x"}, SOUND, position=position)
    writer.close()
    merge_index(tmp_path, "videos")
    assert load_index(tmp_path).entries["shard"].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_writer_refuses_what_a_reader_would(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "videos")
    writer.add("good", {"mp4": b"x"}, SOUND)
    for key in ("a.b", "../a", "/a", "a/../b", "", "a\nb", "./a", "a//b", "good"):
        with pytest.raises(ValueError, match="sample"):
            writer.add(key, {"mp4": b"x"}, SOUND)
    for files in ({}, {"mp4": b"", "mkv": b""}, {"exe": b""}, {"safetensors": b""}, {"mp4": b"", "exe": b""}):
        with pytest.raises(ValueError, match="extensions"):
            writer.add("b", files, SOUND)
    with pytest.raises(ValueError, match="width"):
        writer.add("c", {"mp4": b"x"}, {"width": 64})
    with pytest.raises(ValueError, match="1000000x48"):
        writer.add("d", {"mp4": b"x"}, {**SOUND, "width": 10**6})
    writer.close()
    with pytest.raises(ValueError, match="choose another folder"):
        ShardWriter(tmp_path, "latents", {"codec": "x"})
    (tmp_path / "shard-000000.json").unlink()
    with pytest.raises(ValueError, match="no sidecar"):
        ShardWriter(tmp_path, "videos")
