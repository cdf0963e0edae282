"""Encoding shared by the ranks of a replica: the same bits as without, in every layout, and an end for all where one
fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.config.load import load_config
from tests.data.vae import small_kl

from .launch import REPOSITORY, torchrun

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
WORKER = str(REPOSITORY / "tests" / "parallel" / "sharing_worker.py")
SABOTAGE = str(REPOSITORY / "tests" / "parallel" / "sabotage.py")
TRAINED = ("tensor=2 train", "context=2 train")
LAUNCHES = {2: (*TRAINED, "pipeline=2"), 4: ("tensor=2 context=2", "pipeline=2 tensor=2", "tensor=2 ")}
"""Processes -> layouts; the last one has two replicas, with other videos each."""
CALLS = {
    "autoencoder_kl, odd": 3 + 4 + 1,
    "autoencoder_kl, one frame": 1,
    "autoencoder_kl, one video": 5,
    "autoencoder_kl, empty": 0,
    "tiny_fsq, odd": 3,
    "tiny_fsq, one frame": 1,
    "tiny_fsq, one video": 1,
    "tiny_fsq, empty": 0,
}
"""Of a step: at most two frames of one video each, or whole videos."""
TIMES = ("tokens_per_second", "step_time", "data_wait", "encode_time", "encode_wait", "tflops_per_device")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the ranks found, in a folder for each launch."""
    folder = tmp_path_factory.mktemp("sharing")
    vae = small_kl(folder / "vae")
    for processes, layouts in LAUNCHES.items():
        (folder / str(processes)).mkdir()
        torchrun(processes, WORKER, str(vae), CONFIG, str(folder / str(processes)), *layouts)
    return folder


def found(launched: Path, processes: int, layout: str) -> list[dict[str, Any]]:
    """By each rank."""
    files = [launched / str(processes) / f"rank{rank}.json" for rank in range(processes)]
    return [json.loads(file.read_text(encoding="utf-8"))[layout] for file in files]


@pytest.mark.parametrize(
    ("processes", "layout"), [(count, layout) for count, layouts in LAUNCHES.items() for layout in layouts]
)
def test_latents_are_those_of_one_rank_alone(launched: Path, processes: int, layout: str) -> None:
    ranks = found(launched, processes, layout)
    size = 2 ** layout.count("=2")
    for start in range(0, processes, size):
        replica = ranks[start : start + size]
        for step, calls in CALLS.items():
            assert all(rank[step][0] for rank in replica), step
            made = [rank[step][1] for rank in replica]
            # Nothing is encoded twice, nor left to few where there is enough for all.
            assert sum(made) == calls and max(made) - min(made) <= 1, step
        reason = f"rank {start + size - 1} failed: OutOfMemoryError: CUDA out of memory"
        assert [rank["failed"] for rank in replica] == [
            *[f"PeerFailed: {reason}"] * (size - 1),
            "OutOfMemoryError: CUDA out of memory",
        ]
        assert all(rank["well again"] == "well" for rank in replica)


@pytest.mark.parametrize("layout", TRAINED)
def test_losses_do_not_depend_on_who_encodes(launched: Path, layout: str) -> None:
    """What shares was told `auto`, which its configuration says resolved."""
    run = launched / "2" / f"{TRAINED.index(layout)}_on"
    assert load_config(run / "config.toml").data.share_encoding == "on"
    for rank in found(launched, 2, layout):
        assert [line["step"] for line in rank["on"]] == [0, 1, 2, 2]
        assert all("encode_time" in line and line["encode_wait"] <= line["encode_time"] for line in rank["on"][1:3])
        without = [
            [{name: value for name, value in line.items() if name not in TIMES} for line in rank[way]]
            for way in ("off", "on")
        ]
        for off, on in zip(*without, strict=True):
            assert off | {"memory_peak_gib": 0} == on | {"memory_peak_gib": 0}


def test_a_rank_that_cannot_encode_ends_all_with_its_reason(tmp_path: Path) -> None:
    """Its memory does not suffice."""
    options = ("data.share_encoding=on", f"train.output={tmp_path / 'run'}")
    more = ("parallel.context=2", "train.steps=4", "train.timeout_minutes=2")
    result = torchrun(2, SABOTAGE, "encoding_fails", "train", CONFIG, *options, *more, check=False)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert line == "error (rank 1): OutOfMemoryError: device out of memory (sabotage)"
    assert result.returncode != 0 and "took longer than" not in result.stderr
    assert "rank 1 failed" in (tmp_path / "run" / "logs" / "rank_00000.log").read_text().splitlines()[-1]
    assert "encoding: by all 2 ranks of a replica (data.share_encoding=on)" in result.stdout
    # The step before is recorded.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


@pytest.mark.long
def test_the_benchmark_compares_both_ways() -> None:
    options = ("--small", "--rounds", "1", "--steps", "1", "parallel.context=2", "model.num_layers=2")
    result = torchrun(2, str(REPOSITORY / "tools" / "benchmark_encoding.py"), *options)
    assert "TP1 CP2 PP1; the same latents, to the bit" in result.stdout
    ways = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("|")]
    assert ways[2:] == ["one rank of a replica", "all ranks of a replica"]
