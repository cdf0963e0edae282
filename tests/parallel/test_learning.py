"""Training on a real video learns: it takes minutes, so only `bash tests/run.sh --all` runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import clips

from .launch import torchrun

pytestmark = pytest.mark.long


def lines(run: Path) -> list[dict[str, float]]:
    """The run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_real_video_halves_the_validation_loss_in_40_steps(tmp_path: Path) -> None:
    """Trained on the first part of one camera's view and validated on the rest: a handful of clips of different kinds
    would only be learned by heart.
    """
    run, folder = tmp_path / "run", tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clips.HERE / "intel_cars.mp4", folder)
    options = [
        f"data.path={folder}",
        "data.longest_side=128",
        "data.size_multiple=32",
        "model.patch_size=4",
        "train.steps=40",
        "train.global_batch_size=8",
    ]
    options += [
        "train.micro_batch_size=4",
        "eval.every=20",
        "eval.samples=32",
        "eval.final_scenes=8",
    ]
    torchrun(
        2,
        "-m",
        "megatron_videogpt",
        "train",
        "examples/videogpt/quickstart_videos.toml",
        f"train.output={run}",
        *options,
        timeout=1500,
    )
    validation = [line["validation_loss"] for line in lines(run) if "validation_loss" in line]
    assert len(validation) == 3
    assert validation[-1] <= 0.5 * validation[0], validation
    for name in ("config.toml", "loss.png", "predictions/step_00000040.png", "videos/prediction_00000040.mp4"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    assert lines(run)[-1]["prediction_scenes"] == 8
