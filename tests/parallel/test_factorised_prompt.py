"""The factorised network of Ca2-VDM gives in every layout what the dense twin computes, outputs and gradients of all
parameters, and what was recorded of the original.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .launch import REPOSITORY, torchrun

WORKER = "tests/parallel/factorised_prompt_worker.py"
PARAMETERS = {"with text": 63, "without": 47}
"""Of the two layers, what stands around them and the side inputs; a frozen table of the former has no gradient."""
RECORDED = ("TP2", "CP2")
"""Where passes are compared with recorded ones too."""
CASES: dict[int, dict[str, tuple[str, str, dict[str, Any]]]] = {
    2: {
        "TP2": ("with text", "ranged", {"tensor": 2}),
        "TP2+SP": ("with text", "ranged", {"tensor": 2, "sequence": True, "recompute": "selective"}),
        "TP2+SP recomputed": ("without", "reference", {"tensor": 2, "sequence": True, "recompute": "full"}),
        "CP2": ("with text", "ranged", {"context": 2, "recompute": "mlp"}),
    },
    4: {"TP2+SP CP2": ("with text", "ranged", {"tensor": 2, "sequence": True, "context": 2, "recompute": "full"})},
}


@pytest.mark.parametrize("processes", CASES)
def test_every_layout_is_the_dense_network(processes: int, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(CASES[processes]))
    golden = REPOSITORY / "tests" / "golden" / "vidgpt"
    torchrun(processes, WORKER, str(tmp_path / "cases.json"), str(golden), str(tmp_path / "errors.json"))
    found = json.loads((tmp_path / "errors.json").read_text())
    assert found.keys() == CASES[processes].keys()
    for name, errors in found.items():
        assert len(errors) == PARAMETERS[CASES[processes][name][0]] + 1 + (name in RECORDED), name
        for parameter, error in errors.items():
            assert error <= 1e-5, (name, parameter, error)
