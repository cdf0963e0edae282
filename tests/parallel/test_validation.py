"""Validation loss, predicted videos and pixel errors do not depend on the layout either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .launch import REPOSITORY, torchrun

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
OPTIONS = ("train.steps=2", "eval.every=1", "eval.samples=6", "eval.final_scenes=5", "sample.clips=[1,1]")
LAYOUTS = {
    "one process": (1, ()),
    "TP2+SP": (2, ("parallel.tensor=2", "parallel.sequence=true")),
    "PP2": (2, ("parallel.pipeline=2",)),
    "DP2": (2, ("train.micro_batch_size=2",)),
}


def measured(processes: int, run: Path, options: tuple[str, ...]) -> list[dict[str, float]]:
    torchrun(processes, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *OPTIONS, *options)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (run / "predictions" / "step_00000002.png").stat().st_size > 0
    return [line for line in lines if "validation_loss" in line or "prediction_ratio" in line]


def test_validation_is_the_same_in_every_layout(tmp_path: Path) -> None:
    results = {
        name: measured(processes, tmp_path / str(n), options)
        for n, (name, (processes, options)) in enumerate(LAYOUTS.items())
    }
    expected = results["one process"]
    assert len(expected) == 4  # before the first step, after each of two, and the prediction
    assert expected[-1]["prediction_scenes"] == 5
    assert expected[-1]["linear_ratio"] == pytest.approx(expected[-1]["linear_mse"] / expected[-1]["repeat_last_mse"])
    for name, lines in results.items():
        for line, reference in zip(lines, expected, strict=True):
            assert line == pytest.approx(reference, rel=2e-5), name
