"""Estimated communication against the calls and bytes of real steps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.plan.communication import traffic
from megatron_videogpt.plan.communicators import communicators

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "traffic_worker.py")
MODEL = {"num_layers": 4, "hidden_size": 96, "ffn_hidden_size": 208, "num_attention_heads": 4, "num_query_groups": 2}
SHARDED = {"tensor": 2, "sequence": True}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tensor": 2},
    {"tensor": 2, "recompute": "mlp"},
    {"tensor": 2, "recompute": "full", "recompute_layers": 3},
    SHARDED,
    {**SHARDED, "recompute": "mlp"},
    {**SHARDED, "recompute": "full", "recompute_layers": 3},
    {"context": 2},
    {"context": 2, "recompute": "full"},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
]
STEP = 2
"""Micro-batches of a step on each data parallel rank."""


def test_calls_and_bytes_are_those_of_real_steps(tmp_path: Path) -> None:
    cases = {}
    for layout in LAYOUTS:
        train = {"precision": "fp32", "global_batch_size": STEP if layout else 2 * STEP}
        cases[json.dumps(layout)] = {"model": MODEL, "parallel": layout, "train": train}
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(cases))
    torchrun(2, WORKER, str(asked), str(answered))
    answers = json.loads(answered.read_text())
    assert answers.keys() == cases.keys()
    for name, values in cases.items():
        expected: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        row = clip_work((1, 2, 1), patches=16)
        assert row.tokens == answers[name]["tokens"]
        for item in traffic(config_from_dict(values), 4, 2, row):
            kind = item.what.split(" of ")[0]
            expected[kind][0] += item.calls
            expected[kind][1] += item.size
        assert answers[name]["calls"].keys() == expected.keys(), name
        for kind, (calls, size) in expected.items():
            # The optimizer pads its buffers.
            assert answers[name]["calls"][kind] == [calls, pytest.approx(size, rel=0.01)], f"{name}, {kind}"
        # The group of all ranks waits for a validation, unless a pipeline borrows it.
        listed = communicators(config_from_dict(values), 2)
        expected_groups = [one.pairs for one in listed if one.pairs or not one.what.startswith("all ranks")]
        assert sorted(answers[name]["groups"]) == sorted(expected_groups), name
