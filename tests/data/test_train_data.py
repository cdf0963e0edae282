"""Training on shards as a user starts it: packed rows, other numbers of processes, damaged videos, a data set that
changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.data.shards.dataset import load_index
from tests.parallel.launch import REPOSITORY, cli, torchrun
from tests.parallel.test_errors import error_of
from tests.parallel.test_resume import losses

from .sets import CLIPS, video_shards

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
OPTIONS = (
    "data.source=shards",
    "data.longest_side=64",
    "data.size_multiple=16",
    "data.frame_interval=[3,9]",
    "data.validation_fraction=0.2",
)
OPTIONS += (
    "train.global_batch_size=6",
    "optimizer.schedule=constant",
    "checkpoint.every=2",
    "checkpoint.keep=0",
    "data.max_bad_fraction=0.02",
)


@pytest.fixture(scope="module")
def shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_shards(tmp_path_factory.mktemp("data") / "shards", videos)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_packed_rows_on_two_processes_and_a_resume_on_one(shards: Path, tmp_path: Path) -> None:
    common = ("train", CONFIG, *OPTIONS, f"data.path={shards}")
    plain = cli(*common, f"train.output={tmp_path / 'plain'}", "train.steps=5")
    assert plain.returncode == 0, plain.stderr
    expected = losses(tmp_path / "plain")
    assert sorted(expected) == [1, 2, 3, 4, 5] and len(set(expected.values())) == 5
    packed = ("-m", "megatron_videogpt", *common, f"train.output={tmp_path / 'packed'}", "data.workers=1")
    torchrun(2, *packed, "data.pack_tokens=200", "data.row_lengths=4", "train.steps=2")
    assert losses(tmp_path / "packed") == pytest.approx({step: expected[step] for step in (1, 2)}, rel=1e-5)
    # Other processes, rows and readers from here on.
    torchrun(1, *packed, "data.pack_tokens=500", "data.row_lengths=8", "data.workers=0", "train.steps=5")
    assert losses(tmp_path / "packed") == pytest.approx(expected, rel=1e-5)


def test_a_damaged_video_is_skipped_and_counted(shards: Path, tmp_path: Path) -> None:
    broken = damage(shards, tmp_path / "broken")
    run = tmp_path / "run"
    common = (
        "train",
        CONFIG,
        *OPTIONS,
        f"data.path={broken}",
        f"train.output={run}",
        "logging.every=2",
        "logging.tensorboard=true",
    )
    result = cli(*common, "train.steps=4", "data.workers=2")
    assert result.returncode == 0, result.stderr
    (named,) = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert (
        "odd_height" in named["name"]
        and named["name"].startswith("shard-00000")
        and (result.stdout + result.stderr).count("odd_height") == 1
    )
    counts = [{name: value for name, value in line.items() if name.startswith("rejected/")} for line in lines(run)]
    assert list(counts[-1]) == [f"rejected/{named['kind']}"] and counts[-1][f"rejected/{named['kind']}"] >= 2
    state = json.loads((run / "checkpoints" / "step_00000004" / "state.json").read_text())
    assert state["rejected"] == {named["kind"]: counts[-1][f"rejected/{named['kind']}"]} and state["consumed"] == 24
    # Going on counts on, and names nobody again.
    result = cli(*common, "train.steps=8")
    assert result.returncode == 0 and "odd_height" not in result.stdout + result.stderr
    assert (
        lines(run)[-1][f"rejected/{named['kind']}"] > counts[-1][f"rejected/{named['kind']}"]
        and len((run / "rejected.jsonl").read_text().splitlines()) == 1
    )
    assert all(line["loss"] > 0 for line in lines(run))
    # Too many are one line of each process that read them.
    both = (
        "-m",
        "megatron_videogpt",
        *common[:-3],
        f"train.output={tmp_path / 'other'}",
        "data.max_bad_fraction=0.001",
        "train.steps=12",
    )
    result = torchrun(2, *both, check=False)
    told = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert (
        result.returncode
        and told
        and all("data.max_bad_fraction=0.001" in line and "odd_height" in line for line in told)
    ), result.stderr


def damage(shards: Path, copy: Path) -> Path:
    """A copy in which the bytes of one video are zeros from its middle on, in place: the index still stands."""
    shutil.copytree(shards, copy)
    index = load_index(copy)
    (place,) = [i for i in range(len(index)) if index.key(i) == "odd_height"]
    entry = index.entries[place]
    path = Path(index.shard_url(place))
    data = bytearray(path.read_bytes())
    start, size = int(entry["offset"]), int(entry["size"])
    data[start + size // 8 : start + size] = bytes(size - size // 8)
    path.write_bytes(data)
    return copy


@pytest.mark.long
def test_a_data_set_that_changed_is_refused(shards: Path, tmp_path: Path, videos: Path) -> None:
    run = tmp_path / "run"
    common = ("train", CONFIG, *OPTIONS, f"train.output={run}")
    assert cli(*common, f"data.path={shards}", "train.steps=2").returncode == 0
    other = video_shards(tmp_path / "other", videos, CLIPS[:-1])
    line = error_of(cli(*common, f"data.path={other}", "train.steps=4"))
    assert (
        "the data set has changed: its files" in line
        and "data.allow_changed=true" in line
        and "train.init_from" in line
    )
    assert "data.max_aspect is 4.0 there and 3.0 here" in error_of(
        cli(*common, f"data.path={shards}", "train.steps=4", "data.max_aspect=3")
    )
    # Moved, read by others, packed otherwise: still the same data.
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    assert cli(*common, f"data.path={moved}", "data.workers=1", "data.pack_tokens=400", "train.steps=4").returncode == 0
    result = cli(*common, f"data.path={other}", "train.steps=6", "data.allow_changed=true")
    assert result.returncode == 0 and "goes on regardless" in result.stdout + result.stderr
    # Checkpoints of earlier releases do not know what they were trained on.
    for state in (run / "checkpoints").glob("*/state.json"):
        old = json.loads(state.read_text())
        del old["data"], old["rejected"]
        state.write_text(json.dumps(old))
        (state.parent / "files.json").unlink()
    assert cli(*common, f"data.path={shards}", "train.steps=8").returncode == 0
