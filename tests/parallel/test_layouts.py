"""Every layout gives the losses and gradient norms of one process (DESIGN section 5), over real torchrun processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "layouts_worker.py")
LAYOUTS = {
    1: {"one process": {}, "one process, packed rows": {"micro": 2}},
    2: {
        "TP2": {"tensor": 2},
        "TP2+SP": {"tensor": 2, "sequence": True},
        "PP2": {"pipeline": 2},
        "DP2": {},
        "DP2, packed rows": {"micro": 2},
    },
    4: {"TP2xPP2+SP": {"tensor": 2, "sequence": True, "pipeline": 2}},
}


def run_all(processes: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    layouts = {}
    for name, options in LAYOUTS[processes].items():
        layouts[name] = options
        layouts[f"{name}, recompute"] = {**options, "recompute": "full"}
    asked, answered = folder / f"{processes}.json", folder / f"{processes}.out.json"
    asked.write_text(json.dumps(layouts))
    torchrun(processes, WORKER, str(asked), str(answered))
    return json.loads(answered.read_text())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[float, float]]]:
    return run_all(1, tmp_path_factory.mktemp("single"))


@pytest.mark.parametrize("processes", LAYOUTS)
def test_losses_equal_one_process(processes: int, single: dict[str, list[tuple[float, float]]], tmp_path: Path) -> None:
    results = single if processes == 1 else run_all(processes, tmp_path)
    assert len(results) == 2 * len(LAYOUTS[processes])
    reference = single["one process"]
    assert reference[0][0] != pytest.approx(reference[-1][0], rel=1e-3), "the loss must move for this test to mean anything"
    for name, steps in results.items():
        for step, ((loss, norm), (expected_loss, expected_norm)) in enumerate(zip(steps, reference, strict=True)):
            assert loss == pytest.approx(expected_loss, rel=1e-5), f"{name}, step {step}"
            assert norm == pytest.approx(expected_norm, rel=1e-5), f"{name}, step {step}"
