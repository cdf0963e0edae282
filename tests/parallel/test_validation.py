"""Validation loss, its parts and their errors, predicted videos and pixel errors do not depend on the layout either,
and are what a dense twin finds.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import dense

from .launch import REPOSITORY, torchrun

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
OPTIONS = ("train.steps=2", "eval.every=1", "eval.samples=6", "eval.final_scenes=5", "sample.clips=[1,1]")
LAYOUTS = {
    "one process": (1, ()),
    "TP2+SP": (2, ("parallel.tensor=2", "parallel.sequence=true")),
    "PP2": (2, ("parallel.pipeline=2",)),
    "CP2": (2, ("parallel.context=2",)),
    "DP2": (2, ("train.micro_batch_size=2",)),
}
HISTORIES = {0: "0", 1: "1", 2: "2-3", 3: "2-3"}


def measured(processes: int, run: Path, options: tuple[str, ...]) -> list[dict[str, float]]:
    torchrun(processes, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={run}", *OPTIONS, *options)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (run / "predictions" / "step_00000002.png").stat().st_size > 0
    return [line for line in lines if "validation_loss" in line or "prediction_ratio" in line]


def by_hand(run: Path, folder: Path) -> dict[str, float]:
    """The validation of a finished run, frame by frame through the dense twin, added up here."""
    from megatron_videogpt.codec.build import build_codec
    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.data.loader import HeldOut
    from megatron_videogpt.data.sources.open import open_source
    from megatron_videogpt.objective.build import build_objective
    from tests.conversion import to_folder

    config, weights = load_config(run / "config.toml"), to_folder(run, folder)
    weights["llm.embed_tokens.weight"] = weights["llm.embed_tokens.weight"][1:]
    tiny, codec = dense.Tiny(width=32, ffn=48, table=8, channels=16, groups=2), build_codec(config.codec)
    objective = build_objective(config)
    with HeldOut(open_source(config.data, codec), codec, config) as held:
        assert not held.read(range(6))
    found: dict[str, list[list[float]]] = {}
    for number in range(6):
        sample = replace(held.samples[number], stratum=(number, 6))
        made, clips = objective.sequence(sample), list(sample.clips)
        output = dense.forward(weights, tiny, clips, made.noisy, made.clean, made.timestep, sample.key)
        losses = (output - made.target).square().mean(dim=(1, 2, 3)).tolist()
        before = [sum(clips[:clip]) for clip, frames in enumerate(clips) for _ in range(frames)]
        for frame, (loss, history, t) in enumerate(zip(losses, before, made.timestep.tolist(), strict=True)):
            level = f"t{int(t * 5) / 5:.1f}-{(int(t * 5) + 1) / 5:.1f}"
            for name in ("loss", f"loss_{level}", f"frame_loss_{frame}", f"history_loss_{HISTORIES[history]}"):
                found.setdefault(name, [[] for _ in range(6)])[number].append(loss)
    numbers = {}
    for name, parts in found.items():
        mean = sum(map(sum, parts)) / sum(map(len, parts))
        numbers[f"validation_{name}"] = mean
        counted = [part for part in parts if part]
        if len(counted) > 1:
            squares = sum((sum(part) - mean * len(part)) ** 2 for part in counted) * len(counted) / (len(counted) - 1)
            numbers[f"validation_se_{name}"] = math.sqrt(squares) / sum(map(len, parts))
    return numbers


@pytest.mark.usefixtures("processes")
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
    with torch.no_grad():
        truth = by_hand(tmp_path / "0", tmp_path / "folder")
    assert expected[2] == {"step": 2} | {name: pytest.approx(value, rel=2e-5) for name, value in truth.items()}
