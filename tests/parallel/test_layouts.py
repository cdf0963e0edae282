"""Every layout gives the losses, gradient norms, weights and averages of one process (DESIGN section 5), over real torchrun processes.

`python tools/compare_layouts.py` does so for all layouts (docs/parity.md); here are those that touch everything once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.compare_layouts import CASES, LIMITS, Case, compare, read, reference
from tools.layout_cases import case

from .launch import interpreter, run

FAST = [case for case in CASES if case.fast]
RUN = """
import json, sys
from pathlib import Path
from tools.compare_layouts import CASES, run_cases
from tools.layout_cases import case
cases = [case for case in CASES if case.fast] if sys.argv[2] == "fast" else [case(sys.argv[2], *sys.argv[3:])]
print(json.dumps({case.key: reason for case, reason in run_cases(cases, Path(sys.argv[1])).items()}))
"""


def failed_of(folder: Path, *which: str) -> dict[str, str]:
    """Run the fast cases or a single one (its layout and options), each process count in one torchrun; the keys of those that failed, and why."""
    result = run(interpreter("-c", RUN, folder, *which), timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    failed = failed_of(folder, "fast")
    assert not failed, failed
    return folder


@pytest.mark.parametrize("which", FAST, ids=lambda which: which.name)
def test_layout_agrees_with_one_process(which: Case, results: Path) -> None:
    found, expected = read(results, which), read(results, reference(which))
    assert found is not None and expected is not None
    difference = compare(found, expected)
    assert difference.loss <= 1e-5 and difference.norm <= 1e-5 and difference.parameter <= 1e-5, difference
    assert any(name.startswith("ema.") for name in found[1]) == ("ema" in which.name)


def test_the_runs_are_not_trivial(results: Path) -> None:
    runs = {which: read(results, which) for which in FAST}
    losses = runs[FAST[0]][0]["losses"]  # type: ignore[index]
    assert min(abs(a / b - 1) for a, b in zip(losses, losses[1:])) > 1e-5, "a loss that stands still would compare equal to anything"
    shards, bare, single, padding = (sum(run[0]["facts"][n] for run in runs.values()) for n in range(4))  # type: ignore[index]
    assert shards > 400 and bare > 20 and single > 20 and padding > 20, "context shards without clean rows, single clips and padding must be among them"
    averaged = next(run for which, run in runs.items() if "ema" in which.name)
    assert averaged is not None
    moved = [float((averaged[1][f"ema.{name}"] - value).norm()) for name, value in averaged[1].items() if not name.startswith("ema.")]
    assert min(moved) > 0, "an average that equals the weights would hide a missing update"


@pytest.mark.parametrize(
    ("tamper", "wrong"),
    [
        (lambda run: run[0]["losses"].__setitem__(4, run[0]["losses"][4] * 1.00002), "loss"),
        (lambda run: run[0]["norms"].__setitem__(0, run[0]["norms"][0] * 0.99998), "norm"),
        (lambda run: run[1]["llm.norm.weight"].mul_(1.00002), "parameter"),
        (lambda run: run[1]["llm.norm.weight"].fill_(float("nan")), "parameter"),
    ],
)
def test_a_difference_is_found(tamper: Callable[[tuple[dict, dict]], None], wrong: str, results: Path) -> None:
    """The comparison itself: two parts in 100,000 are too much, and it says where."""
    expected = read(results, reference(FAST[0]))
    assert expected is not None
    found = copy.deepcopy(expected)
    tamper(found)
    difference = compare(found, expected)
    assert not difference.agrees("fp32")
    assert [name for name, limit in LIMITS["fp32"].items() if not getattr(difference, name) <= limit] == [wrong]
    if wrong == "parameter":
        assert difference.worst == "llm.norm.weight"


def test_a_layout_that_cannot_run_is_named(tmp_path: Path) -> None:
    wrong = case("P1", "virtual_pipeline=2")
    failed = failed_of(tmp_path, "P1", "virtual_pipeline=2")
    assert list(failed) == [wrong.key] and "parallel.virtual_pipeline = 2: must be 1 without pipeline" in failed[wrong.key]
    assert read(tmp_path, reference(wrong)) is not None and read(tmp_path, wrong) is None
