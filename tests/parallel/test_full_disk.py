"""A run whose disk is full: it trains to its end, says once of each kind of record what it lost, and goes on later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import CONFIG
from .launch import REPOSITORY, cli, environment_of

ROOM = 9 * 4096
"""Bytes, for config.toml (5 pages) and the log (2); numbers of a few steps fill the rest, and no picture fits."""


def lines(run: Path) -> list[dict[str, float]]:
    """Of metrics.jsonl; none may be cut."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_full_disk_costs_records_and_no_step(finished: Path, small_disk: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    run.mkdir()
    (tmp_path / "checkpoints").mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "checkpoints")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (free - ROOM))
    command = ["train", CONFIG, f"train.output={run}", "logging.tensorboard=true"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "megatron_videogpt", *command, "eval.predict_every=7"],
            cwd=REPOSITORY,
            env=environment_of(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    said = result.stderr
    assert result.returncode == 0 and "Traceback" not in said, said
    shown = [line.split()[3] for line in said.splitlines() if line.startswith("step ")]
    assert shown == [f"{line['loss']:.4f}" for line in lines(finished) if "loss" in line]

    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    once = [line.split(": ")[1] for line in warnings[:-1]]
    assert len(set(once)) == len(once), said
    assert {"standard output", "metrics.jsonl", "TensorBoard", "videos", "predictions", "loss.png"} <= set(once), said
    written = [int(line["step"]) for line in lines(run)]
    assert written == list(range(1, len(written) + 1)) and 0 < len(written) < 14
    assert warnings[-1].startswith("warning: lost, since it could not be written: "), said
    assert f"metrics.jsonl {14 - len(written)} lines (steps {len(written) + 1} to 14)" in warnings[-1]
    assert "videos 2 files (steps 7 to 14)" in warnings[-1] and "loss.png 1 file" in warnings[-1]
    assert not [path for path in small_disk.rglob("*") if path.suffix in (".png", ".mp4", ".partial")]

    (small_disk / "filler").unlink()
    later = cli(*command, "train.steps=15")
    assert later.returncode == 0 and "warning: " not in later.stderr, later.stderr
    assert [int(line["step"]) for line in lines(run)] == [*written, 15] and (run / "loss.png").exists()
