"""Layers with masks of their own, an order, groups, side inputs and modulation give in every layout what the dense twin
computes: outputs and gradients of all parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .launch import torchrun

WORKER = "tests/parallel/factorised_worker.py"
SIDES = 4
"""Parameters of the network that computes side inputs, which pipelines do without."""
CASES: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {
    2: {
        "TP2": ("ranged", {"tensor": 2}),
        "TP2+SP": ("ranged", {"tensor": 2, "sequence": True}),
        "TP2+SP recomputed": ("reference", {"tensor": 2, "sequence": True, "recompute": "full"}),
        "CP2": ("ranged", {"context": 2}),
        "CP2 recomputed": ("reference", {"context": 2, "recompute": "mlp"}),
        "PP2": ("ranged", {"pipeline": 2, "pipeline_layers": [3, 1]}),
        "PP2 VP2 recomputed": ("ranged", {"pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}),
    },
    4: {
        "CP4": ("ranged", {"context": 4}),
        "TP2+SP CP2": ("ranged", {"tensor": 2, "sequence": True, "context": 2, "recompute": "selective"}),
        "TP2+SP PP2": ("ranged", {"tensor": 2, "sequence": True, "pipeline": 2}),
    },
}


@pytest.mark.parametrize("processes", CASES)
def test_every_layout_is_the_dense_network(processes: int, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(CASES[processes]))
    torchrun(processes, WORKER, str(tmp_path / "cases.json"), str(tmp_path / "errors.json"))
    found = json.loads((tmp_path / "errors.json").read_text())
    assert found.keys() == CASES[processes].keys()
    for name, errors in found.items():
        expected = 4 * 11 + 5 + 1 + (0 if "PP2" in name else SIDES)
        assert len(errors) == expected, name
        for parameter, error in errors.items():
            assert error <= 1e-5, (name, parameter, error)
