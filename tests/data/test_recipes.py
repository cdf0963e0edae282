"""The recipes in examples/datasets on miniatures in each data set's published layout, with the rows and files that are
never complete there.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.geometry import codec_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.decode import read_clip
from megatron_videogpt.data.shards.dataset import load_index
from megatron_videogpt.data.sources.open import open_source
from tests.miniatures import kinetics_name, msrvtt, table, ucf101, video

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "examples" / "datasets"


def sharded(recipe: str, out: Path, *words: object) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(metadata by key, kinds of rejection by name) of what the recipe makes of the sources."""
    options = ["--recipe", RECIPES / f"{recipe}.toml", "--output", out, "--workers", 0]
    assert main(["data", "prepare", *map(str, (*options, *words))]) == 0
    index = load_index(out)
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {index.key(i): index.meta(i) for i in range(len(index))}, {line["name"]: line["kind"] for line in lines}


def captions(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {key: meta["caption"] for key, meta in found.items()}


def panda(folder: Path, clips: int) -> dict[str, str]:
    """What the authors' video2dataset leaves: shard folders, clips with .mp4, .txt and .json, failed downloads with the
    latter two only, statistics.
    """
    expected = {}
    for i in range(clips):
        base = folder / f"{i // 4:05d}" / f"{i // 2:07d}_{i % 2:05d}"
        caption = f"It is clip {i}, with a ünïcode caption."
        video(base.with_suffix(".mp4"), i)
        meta: dict[str, Any] = {
            "videoID": "--_xJ",
            "url": "https://youtu",
            "caption": caption,
            "matching_score": f"{0.4 + i / 100:.2f}",
            "clips": [[0.0, 1.0]],
            "status": "success",
        }
        meta |= {
            "key": base.name,
            "error_message": None,
            "yt_meta_dict": {"info": {"title": "t"}, "subtitles": [{"start": "0", "lines": ["a"]}]},
        }
        base.with_suffix(".json").write_text(json.dumps(meta))
        base.with_suffix(".txt").write_text(caption)
        expected[f"{base.parent.name}_{base.name}"] = caption
    failed = folder / "00000" / "0000099"
    failed.with_suffix(".json").write_text(
        json.dumps({"caption": "['a', 'b']", "status": "failed_to_download", "error_message": "[Errno 2]"})
    )
    failed.with_suffix(".txt").write_text("['a', 'b']")
    (folder / "00000_stats.json").write_text(json.dumps({"count": 100, "successes": clips}))
    (folder / "00000.parquet").write_bytes(b"PAR1")
    return expected


def test_panda70m(tmp_path: Path) -> None:
    expected = panda(tmp_path / "panda", 6)
    (tmp_path / "panda/00001/0000002_00000.json").write_text("{broken")
    (tmp_path / "panda/00001/0000002_00001.json").unlink()
    found, rejected = sharded("panda70m", tmp_path / "out", tmp_path / "panda")
    assert captions(found) == {
        key: text for key, text in expected.items() if key != "00001_0000002_00000"
    }  # one has its .txt only
    assert rejected == {"00001/0000002_00000.mp4": "metadata"}
    assert (
        found["00000_0000001_00001"]["source"] == "00000/0000001_00001.mp4"
        and "yt_meta_dict" not in found["00000_0000001_00001"]
    )
    found, rejected = sharded(
        "panda70m", tmp_path / "good", tmp_path / "panda/00000", "--where", "matching_score>=0.42"
    )
    assert sorted(found) == ["0000001_00000", "0000001_00001"] and not rejected


def test_panda70m_as_webdataset(tmp_path: Path) -> None:
    """The same, downloaded with --output_format webdataset: tar files, which also open as they are."""
    expected = panda(tmp_path / "panda", 4)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/00000.tar", "w") as tar:
        for path in sorted((tmp_path / "panda/00000").iterdir()):
            tar.add(path, path.name)
    found, rejected = sharded("panda70m", tmp_path / "out", tmp_path / "shards")
    assert captions(found) == {key.removeprefix("00000_"): text for key, text in expected.items()}
    assert rejected == {"00000.tar[0000099]": "incomplete"} and found["0000000_00000"]["matching_score"] == "0.40"


def test_openvid1m(tmp_path: Path) -> None:
    header = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    scores = ["5.1", "3.2", "0.99", "pan_left", "20", "25.0", "0.8"]
    names = ["---_iRTHryQ_13_0to241.mp4", "--0ETtekpw0_2_18to486.mp4", "celebv_xyz.mp4"]
    rows = [[name, f'A woman, "{i}", walks.\nShe smiles.', *scores] for i, name in enumerate(names)]
    rows += [
        ["in_a_part_that_was_not_downloaded.mp4", "x", *scores],
        ["short_row.mp4", "x"],
        ["low.mp4", "dull", "2.5", *scores[1:]],
    ]
    file = table(tmp_path / "data/train/OpenVid-1M.csv", header, rows)
    for i, name in enumerate([*names, "low.mp4"]):
        video(tmp_path / ("video" if i else "video/OpenVid_part0") / name, i)
    found, rejected = sharded(
        "openvid1m", tmp_path / "out", file, "--root", tmp_path / "video", "--where", "aesthetic score>=5"
    )
    assert list(captions(found).values()) == [row[1] for row in rows[:3]]
    assert list(found) == ["OpenVid_part0_---_iRTHryQ_13_0to241", "--0ETtekpw0_2_18to486", "celebv_xyz"]
    assert rejected == {"in_a_part_that_was_not_downloaded.mp4": "missing", "OpenVid-1M.csv:9": "metadata"}


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of AVI files, and the lists of a split."""
    return ucf101(tmp_path_factory.mktemp("ucf"))


def test_ucf101(ucf: Path, tmp_path: Path) -> None:
    lists, root = ucf / "ucfTrainTestlist", ucf / "UCF-101"
    train, rejected = sharded("ucf101", tmp_path / "train", lists / "trainlist01.txt", "--root", root)
    assert len(train) == 9 and rejected == {"YoYo/v_YoYo_g99_c01.avi": "missing"}
    assert all(meta["label"] == key.split("_v_")[0] == meta["source"].split("/")[0] for key, meta in train.items())
    test, rejected = sharded("ucf101", tmp_path / "test", lists / "testlist01.txt", "--root", root)
    assert (
        [meta["label"] for meta in test.values()] == ["ApplyEyeMakeup", "BasketballDunk", "YoYo"]
        and not rejected
        and not set(train) & set(test)
    )
    whole, _ = sharded("ucf101", tmp_path / "whole", root)
    assert {key: meta["label"] for key, meta in whole.items()} == {
        key: meta["label"] for key, meta in (train | test).items()
    }


def test_kinetics600(tmp_path: Path) -> None:
    """Clips in one folder, as most of CVDF's archives unpack, or in their class's with macOS's copies; rows without a
    video; test lists without labels.
    """
    rows = [
        ["testifying", "---QUuC4vJs", 84, 94, "train"],
        ["abseiling", "-3B32lodo2M", 59, 69, "train"],
        ["mountain climber (exercise)", "1val3qlpldk", 0, 10, "train"],
    ]
    names = [kinetics_name(str(row[1]), int(row[2]), int(row[3])) for row in rows]
    train = table(
        tmp_path / "annotations/train.csv",
        "label,youtube_id,time_start,time_end,split",
        [*rows, ["abseiling", "gone_000", 1, 11, "train"], ["half a row"]],
    )
    for i, name in enumerate(names):
        video(tmp_path / "k600/train" / ("." if i < 2 else "mountain climber (exercise)") / name, i)
    (tmp_path / "k600/train/mountain climber (exercise)" / f"._{names[2]}").write_bytes(b"Mac OS X")
    found, rejected = sharded("kinetics600", tmp_path / "out", train, "--root", tmp_path / "k600/train")
    assert {key: meta["label"] for key, meta in found.items()} == {
        name.removesuffix(".mp4"): row[0] for name, row in zip(names, rows)
    }
    assert rejected == {"gone_000_000001_000011.mp4": "missing", "train.csv:6": "metadata"}
    test = table(
        tmp_path / "annotations/test.csv",
        "youtube_id,time_start,time_end,split",
        [[*row[1:4], "test"] for row in rows[:2]],
    )
    found, rejected = sharded("kinetics600", tmp_path / "test", test, "--root", tmp_path / "k600")
    assert len(found) == 2 and not rejected and all("label" not in meta for meta in found.values())


def test_msrvtt(tmp_path: Path) -> None:
    msrvtt(tmp_path)
    words = [tmp_path / "train_val_videodatainfo.json", "--root", tmp_path / "videos", "--where", "split==train"]
    found, rejected = sharded("msrvtt", tmp_path / "out", *words)
    assert captions(found) == {f"video{i}": f"sentence {i} of 0" for i in (0, 1, 4)}
    assert found["video1"]["captions"] == [f"sentence 1 of {k}" for k in range(3)] and found["video1"]["label"] == "1"
    assert rejected == {
        "video3.mp4": "missing",
        "train_val_videodatainfo.json[6]": "metadata",
        "train_val_videodatainfo.json:7": "metadata",
    }


def test_a_sharded_miniature_trains(ucf: Path, tmp_path: Path) -> None:
    """From a recipe to samples: each is the resized frames of one of the original files, and an epoch visits all of
    them.
    """
    sharded("ucf101", tmp_path / "out", ucf / "UCF-101")
    config = DataConfig(
        source="shards",
        path=str(tmp_path / "out"),
        frames=5,
        frame_interval=(2, 4),
        clips=(1, 5),
        longest_side=64,
        validation_fraction=0.2,
        cache=str(tmp_path / "cache"),
    )
    source = open_source(config, codec_geometry(CodecConfig()))
    seen = set()
    for split in (source.train, source.validation):
        plans = split.plans(0, range(len(split)))
        for i in range(len(split)):
            plan, job = plans[i], split.job(plans[i])
            sample = job.read()
            key = job.label.partition("[")[2].partition("]")[0]
            assert sample.pixels is not None and sum(sample.clips) == 5
            original = next((ucf / "UCF-101").rglob(f"{key.partition('_')[2]}.avi"))
            np.testing.assert_array_equal(sample.pixels, read_clip(original, plan.frames, 64, config.size_multiple))
            seen.add(key)
    assert len(seen) == 12
