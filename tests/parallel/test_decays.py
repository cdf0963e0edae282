"""WSD-S in a run: checkpoints around each decay, losses after it, and resumes inside of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint.folders import complete_folders, step_of

from .launch import REPOSITORY, cli

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
OPTIONS = (
    "optimizer.schedule=wsd_s",
    "optimizer.lr_wsd_decay_ends=[5, 10]",
    "optimizer.lr_wsd_decay_share=0.3",
    *("train.steps=10", "checkpoint.every=0", "checkpoint.keep=1", "eval.every=100", "eval.samples=2"),
)
TIMES = (
    *("step_time", "data_wait", "encode_time", "encode_wait"),
    *("tokens_per_second", "tflops_per_device", "memory_peak_gib"),
)


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_a_run_decays_twice_and_resumes_inside_of_a_decay(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = cli("train", CONFIG, f"train.output={whole}", *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert [step_of(path) for path in complete_folders(whole)] == [3, 5, 7, 10]
    rates = {line["step"]: line["learning_rate"] for line in lines_of(whole) if "learning_rate" in line}
    expected = [3e-3, 1.5e-3, 0, 3e-3, 3e-3, 2e-3, 1e-3, 0]
    assert [rates[step] for step in range(3, 11)] == pytest.approx(expected, rel=1e-12)
    validated = [line["step"] for line in lines_of(whole) if "validation_loss" in line]
    assert validated == [0, 5, 10]

    shutil.copytree(whole, again)
    for step in (5, 7, 10):
        shutil.rmtree(again / "checkpoints" / f"step_{step:08d}")
    resumed = cli("train", CONFIG, f"train.output={again}", *OPTIONS)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 3 of 10, 7 to go; learning rate 3.00e-03 -> 1.50e-03 (wsd_s)" in resumed.stdout
    assert lines_of(again) == lines_of(whole)
