"""Every option of the backbone gives in every layout what the dense twin computes: outputs and gradients of all
parameters; and a comparison that could not fail would show nothing, so that it is tried with three faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import backbone

from .launch import torchrun

WORKER = "tests/parallel/backbone_worker.py"
EVERY = list(backbone.OPTIONS)
FEW = ["biases", "dropout", "all"]
Case = tuple[dict[str, Any], list[str], str]
CASES: dict[int, dict[str, Case]] = {
    2: {
        "TP2": ({"tensor": 2}, EVERY, ""),
        "TP2+SP": ({"tensor": 2, "sequence": True}, EVERY, ""),
        "PP2": ({"pipeline": 2}, EVERY, ""),
        "CP2": ({"context": 2}, EVERY, ""),
        "DP2": ({}, FEW, ""),
        "TP2 selective": ({"tensor": 2, "recompute": "selective"}, EVERY, ""),
        "TP2+SP mlp": ({"tensor": 2, "sequence": True, "recompute": "mlp"}, EVERY, ""),
        "CP2 full": ({"context": 2, "recompute": "full"}, FEW, ""),
        "PP2 VP2 full": ({"pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}, FEW, ""),
    },
    4: {
        "TP2+SP CP2": ({"tensor": 2, "sequence": True, "context": 2, "recompute": "selective"}, FEW, ""),
        "TP2+SP PP2": ({"tensor": 2, "sequence": True, "pipeline": 2, "recompute": "mlp"}, FEW, ""),
    },
}
FAULTS: dict[str, Case] = {
    "a bias is dropped": ({"tensor": 2}, ["biases"], "bias"),
    "a norm's bias is not marked": ({"tensor": 2, "sequence": True}, ["norm"], "unmarked"),
    "dropout goes by rank": ({"tensor": 2}, ["dropout"], "rank"),
}


def measured(processes: int, cases: dict[str, Case], folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    (folder / "cases.json").write_text(json.dumps(cases))
    torchrun(processes, WORKER, str(folder / "cases.json"), str(folder / "errors.json"))
    found: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "errors.json").read_text())
    assert {name: list(options) for name, options in found.items()} == {name: case[1] for name, case in cases.items()}
    return found


@pytest.mark.parametrize("processes", CASES)
def test_every_option_is_the_dense_network_in_every_layout(processes: int, tmp_path: Path) -> None:
    faults = FAULTS if processes == 2 else {}
    found = measured(processes, CASES[processes] | faults, tmp_path)
    for name in CASES[processes]:
        for option, errors in found[name].items():
            assert errors.keys() == backbone.truth(option)[2].keys() | {"output"}, (name, option)
            for parameter, error in errors.items():
                assert error <= 1e-5, (name, option, parameter, error)
    for name in faults:
        (errors,) = found[name].values()
        assert max(errors.values()) > 1e-2, (name, errors)
