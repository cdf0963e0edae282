"""Training on codes of the FSQ tokenizer, which joins four frames to one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tokenizer import EVERY, saved

from .launch import REPOSITORY, cli

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")


def test_two_steps_on_codes(tmp_path: Path) -> None:
    folder, run = saved(tmp_path / "tokenizer", EVERY), tmp_path / "run"
    options = ["codec.name=fsq", f"codec.path={folder}", "data.frames=5", "data.frame_interval=[1, 2]"]
    result = cli("train", CONFIG, *options, f"train.output={run}", "train.steps=2", "eval.every=2", "eval.samples=4")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    # 3 latent frames follow 2 given ones, in steps of 4 frames.
    assert any("validation_loss" in line for line in lines) and list((run / "videos").glob("*.mp4"))
    state = json.loads((run / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert len(state["codec"]) == 64
    # Other weights are another codec.
    saved(folder, EVERY, seed=1)
    again = cli("train", CONFIG, *options, f"train.output={run}", "train.steps=3")
    assert again.returncode == 2 and again.stderr.count("error:") == 1 and "codec" in again.stderr
