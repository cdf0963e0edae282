"""Every layout gives the losses, gradient norms, weights and averages of one process, over real torchrun processes.

`python tools/compare_layouts.py` does so for all layouts (docs/parity.md); here are those that touch everything once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.layouts.cases import case
from tests.layouts.compare import CASES, LIMITS, Case, compare, read, reference

from .launch import interpreter, release, run

FAST = [case for case in CASES if case.fast]
ROUNDED = [replace(case, precision="bf16") for case in FAST if case.bf16]
RUN = """
import json, sys
from dataclasses import replace
from pathlib import Path
from tests.layouts.compare import CASES, run_cases
from tests.layouts.cases import case
fast = [case for case in CASES if case.fast]
rounded = [replace(case, precision="bf16") for case in fast if case.bf16]
cases = {"fast": fast, "bf16": rounded}.get(sys.argv[2]) or [case(sys.argv[2], *sys.argv[3:])]
print(json.dumps({case.key: reason for case, reason in run_cases(cases, Path(sys.argv[1])).items()}))
"""


def failed_of(folder: Path, *which: str) -> dict[str, str]:
    """Run the fast cases, those in bf16 or a single one (its layout and options), each process count in one torchrun;
    the keys of those that failed, and why.
    """
    result = run(interpreter("-c", RUN, folder, *which), timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    failed = failed_of(folder, "fast")
    assert not failed, failed
    return folder


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `results`, in bf16."""
    folder = tmp_path_factory.mktemp("rounded")
    failed = failed_of(folder, "bf16")
    assert not failed, failed
    return folder


@pytest.mark.parametrize("which", FAST, ids=lambda which: which.name)
def test_layout_agrees_with_one_process(which: Case, results: Path) -> None:
    found, expected = read(results, which), read(results, reference(which))
    assert found is not None and expected is not None
    difference = compare(found, expected)
    assert difference.loss <= 1e-5 and difference.norm <= 1e-5 and difference.parameter <= 1e-5, difference
    assert any(name.startswith("ema.") for name in found[1]) == ("ema" in which.name)


def test_it_was_the_release_to_be_tested(results: Path) -> None:
    assert {run[0]["megatron"] for run in (read(results, which) for which in FAST) if run is not None} == {release()}


@pytest.mark.long
@pytest.mark.parametrize("which", ROUNDED, ids=lambda which: which.name)
def test_layout_agrees_with_one_process_in_bf16(which: Case, rounded: Path) -> None:
    found, expected = read(rounded, which), read(rounded, reference(which))
    assert found is not None and expected is not None
    difference = compare(found, expected)
    assert difference.loss <= 5e-3 and difference.norm <= 1e-2 and difference.update <= 0.15, difference
    # Main parameters in float32, not the weights, which are bf16.
    assert not torch.equal(found[1]["llm.norm.weight"], found[1]["llm.norm.weight"].bfloat16().float())


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "ema."])
def test_a_wrong_update_is_found_in_bf16(prefix: str, rounded: Path) -> None:
    """A third too much was added to a norm's weight: less than a thousandth of the weight, and too much."""
    expected = read(rounded, reference(next(which for which in ROUNDED if "ema" in which.name)))
    assert expected is not None
    found, name = copy.deepcopy(expected), prefix + "llm.layers.6.input_layernorm.weight"
    assert compare(found, expected).agrees("bf16")
    found[1][name] *= 1 + 0.33 * expected[0]["moved"][name] / float(expected[1][name].norm())
    difference = compare(found, expected)
    assert not difference.agrees("bf16") and difference.worst_update == name and difference.parameter < 1e-3


def test_the_runs_are_not_trivial(results: Path) -> None:
    runs = {which: read(results, which) for which in FAST}
    losses = runs[FAST[0]][0]["losses"]  # type: ignore[index]
    assert min(abs(a / b - 1) for a, b in zip(losses, losses[1:])) > 1e-5, (
        "a loss that stands still would compare equal to anything"
    )
    shards, bare, single, padding = (sum(run[0]["facts"][n] for run in runs.values()) for n in range(4))  # type: ignore[index]
    assert shards > 400 and bare > 20 and single > 20 and padding > 20, (
        "context shards without clean rows, single clips and padding must be among them"
    )
    averaged = next(run for which, run in runs.items() if "ema" in which.name)
    assert averaged is not None
    moved = [
        float((averaged[1][f"ema.{name}"] - value).norm())
        for name, value in averaged[1].items()
        if not name.startswith("ema.")
    ]
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
    assert (
        list(failed) == [wrong.key] and "parallel.virtual_pipeline = 2: must be 1 without pipeline" in failed[wrong.key]
    )
    assert read(tmp_path, reference(wrong)) is not None and read(tmp_path, wrong) is None
