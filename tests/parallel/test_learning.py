"""Training on real videos and on generated scenes learns: minutes, so only `bash tests/run.sh --all` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .launch import torchrun

pytestmark = pytest.mark.long


def lines(run: Path) -> list[dict[str, float]]:
    """The run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_real_videos_halve_the_validation_loss_in_300_steps(videos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["data.source=videos", f"data.path={videos}", "data.longest_side=128", "data.min_side=64", "train.steps=300"]
    options += ["eval.every=150", "eval.samples=32", "eval.final_scenes=8"]
    torchrun(2, "-m", "megatron_videogpt", "train", "examples/videogpt/quickstart.toml", f"train.output={run}", *options, timeout=1500)
    validation = [line["validation_loss"] for line in lines(run) if "validation_loss" in line]
    assert len(validation) == 3
    assert validation[-1] <= 0.5 * validation[0], validation
    for name in ("config.toml", "loss.png", "predictions/step_00000300.png", "videos/prediction_00000300.mp4"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    assert lines(run)[-1]["prediction_scenes"] == 8
