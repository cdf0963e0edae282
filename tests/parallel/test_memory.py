"""Estimated memory against what autograd saves, and against the resident set of real training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.plan.memory import layer_bytes
from tools.measure_memory import RUNS, Run, estimate, measure

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "saved_worker.py")
MODEL = {"hidden_size": 96, "ffn_hidden_size": 208, "num_attention_heads": 4, "num_query_groups": 2}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{"recompute": policy} for policy in ("none", "selective", "mlp", "full")],
    2: [
        {"tensor": 2},
        {"tensor": 2, "sequence": True},
        {"tensor": 2, "sequence": True, "recompute": "selective"},
        {"context": 2},
        {"context": 2, "recompute": "selective"},
    ],
}
OPTIONS: dict[str, Any] = {
    "norm": "layer",
    "activation": "gelu",
    "biases": True,
    "positions": "learned",
    "dropout": 0.1,
}
"""Of the backbone; in one process, whatever the policy."""


@pytest.mark.parametrize("processes", LAYOUTS)
def test_a_layer_keeps_what_autograd_saves(processes: int, tmp_path: Path) -> None:
    cases = {
        f"{precision} {json.dumps(layout)}": {"model": MODEL, "parallel": layout, "train": {"precision": precision}}
        for precision in ("fp32", "bf16")
        for layout in LAYOUTS[processes]
        # What differs by precision differs alike in every layout.
        if precision == "fp32" or processes == 1 or "recompute" in layout
    }
    if processes == 1:
        cases |= {f"like GPT-2 {name}": values | {"model": MODEL | OPTIONS} for name, values in cases.items()}
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(cases))
    torchrun(processes, WORKER, str(asked), str(answered))
    answers = json.loads(answered.read_text())
    assert answers.keys() == cases.keys()
    for name, values in cases.items():
        kept = layer_bytes(config_from_dict(values), answers[name]["tokens"]).kept(
            values["parallel"].get("recompute", "none")
        )
        assert kept == pytest.approx(answers[name]["bytes"], rel=0.01), name


def check(run: Run) -> None:
    """Within 15 % of the fullest rank's growth, of a run that grows by 1.2 GB at least: libraries' own buffers are a
    tenth of that.
    """
    peak = max(measure(run)["bytes"])
    assert peak >= 1.2e9
    assert estimate(run).total == pytest.approx(peak, rel=0.15)


SUBSET = ("TP2+SP fp32 selective", "PP2 fp32 none", "CP2 bf16 selective")
"""Runs of `tools/measure_memory.py` that the suite repeats: one for each way to split a model; all of
them take a quarter of an hour.
"""


@pytest.mark.long
@pytest.mark.parametrize("run", [run for run in RUNS if run.name in SUBSET], ids=lambda run: run.name)
def test_memory_is_the_measured_one(run: Run) -> None:
    check(run)
