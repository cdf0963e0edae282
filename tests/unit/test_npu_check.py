"""tools/npu_check.py: its bars and its script without an NPU; long: every part of it over stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import npu_check

ROOT = Path(__file__).resolve().parents[2]
BARS = 10


def answers(**changes: Any) -> dict[str, Any]:
    """What the parts leave on a device where everything is right."""
    row = {"note": "", "step": [2.0, 1.0, 3.0], "memory": 57.0}
    good: dict[str, Any] = {
        "operators": {"cases": {"swiglu bfloat16": ""}, "microseconds": {"both, merged": 200.0}, "assumed": 100.0},
        "verify": {
            f"{name} bf16": "" for name in ("npu, heads of 96", "npu_dense, heads", "ranged, heads", "fused layers")
        },
        "layouts": {"DP2 fp32": "reference", "TP2 x DP1 fp32": "equal", "CP2 x DP1 bf16": "not run: out of time"},
        "step": {"layers": 24, "estimate": 60.0, "backends": {"npu": row, "npu_dense": {**row, "note": "too large"}}},
        "fallbacks": {"backends": {"npu": row}},
    }
    return good | changes


def missed(out: Path, found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(bar, what) for verdict, bar, what in npu_check.bars(found.get, out) if verdict == "MISS"]


def test_bars_pass_where_everything_is_right(tmp_path: Path) -> None:
    verdicts = list(npu_check.bars(answers().get, tmp_path))
    assert {verdict for verdict, _, _ in verdicts} == {"PASS"} and len(verdicts) == BARS
    found = {bar: what for _, bar, what in verdicts}
    assert found["layouts: equal over HCCL"] == "2 comparisons"
    assert found["a training step runs"] == "2.000 s with 24 layers"
    assert found["peak memory: the estimate within 15 %"] == "0.95 times the estimate"
    nothing = [verdict for verdict, _, _ in npu_check.bars({}.get, tmp_path)]
    assert nothing == ["NOT MEASURED"] * BARS


def test_whatever_is_wrong_is_named(tmp_path: Path) -> None:
    operators = answers()["operators"]
    wrong = {**operators, "cases": {"rotary float32": "RuntimeError: {odd}"}, "microseconds": {"both, merged": 201.0}}
    assert missed(tmp_path, answers(operators=wrong)) == [
        ("operators: as documented", "rotary float32: RuntimeError: {odd}"),
        ("a small call of attention, both ways: at most 200 us, twice what plans assume", "201 us"),
    ]
    # `npu` is not `npu_dense`.
    verify = answers()["verify"] | {"npu_dense, heads": "output by 1e-1"}
    assert missed(tmp_path, answers(verify=verify)) == [
        ("npu_dense: agrees with reference", "npu_dense, heads: output by 1e-1")
    ]
    layouts = answers()["layouts"] | {"PP2 x DP1 bf16": "DIFFERENT (allowed 0.005, 0.01)"}
    ((bar, what),) = missed(tmp_path, answers(layouts=layouts))
    assert bar == "layouts: equal over HCCL" and what.startswith("PP2 x DP1 bf16: DIFFERENT")
    step = answers()["step"] | {"estimate": 45.0}
    assert missed(tmp_path, answers(step=step)) == [
        ("peak memory: the estimate within 15 %", "1.27 times the estimate")
    ]


def test_operators_of_the_host_are_found_in_warnings_and_errors(tmp_path: Path) -> None:
    warning = (
        f"CAUTION: The operator 'aten::x' is not currently supported on the NPU backend and {npu_check.FALLS_BACK}."
    )
    (tmp_path / "step.md").write_text(f"a\n{warning}\n{warning}\n", encoding="utf-8")
    ((bar, what),) = missed(tmp_path, answers())
    assert bar == "no operator of a step runs on the host" and what == f"1 {warning}"
    (tmp_path / "step.md").unlink()
    failed = {"backends": {"npu": {"note": "RuntimeError: aten::x has no kernel", "step": []}}}
    ((_, what),) = missed(tmp_path, answers(fallbacks=failed))
    assert what == "1 RuntimeError: aten::x has no kernel"


def test_no_part_runs_on_another_platform() -> None:
    """The quickstart's file names the CPU."""
    named = [words for one in npu_check.PARTS for words in (one.gpu, one.rehearsal)] + [npu_check.SMALL]
    runs = [words for words in named if any(word.endswith(".toml") for word in words)]
    assert len(runs) == 3 and all("train.platform=npu" in words for words in runs)
    devices = [words[words.index("--device") + 1] for words in named if "--device" in words]
    assert devices == ["npu"] * 4


@pytest.mark.skipif(bool(list(Path("/dev").glob("davinci[0-9]*"))), reason="this machine has an NPU")
def test_without_an_npu_the_script_says_so_in_one_line() -> None:
    command = ["bash", str(ROOT / "tools" / "npu_check.sh")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("npu_check: no Ascend NPU on this machine")


@pytest.mark.long
def test_every_part_over_stand_ins(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = ["bash", str(ROOT / "tools" / "npu_check.sh"), "--rehearsal", "--minutes", "9", "--out", str(tmp_path)]
    done = subprocess.run(command, env=kept, capture_output=True, encoding="utf-8", check=False)
    # Of a CPU neither the time of a call nor the allocator's peak is a device's.
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert done.returncode == 1 and done.stdout.count("exit code") == 0, done.stdout + done.stderr
    verdicts = dict(line[2:].split(": ", 1)[::-1] for line in text.splitlines()[2 : 2 + BARS])
    bad = {bar for bar, verdict in verdicts.items() if verdict != "PASS"}
    assert len(verdicts) == BARS and len(bad) == 2, bad
    assert all(bar.startswith(("a small call", "peak memory")) for bar in bad), bad
    layouts = json.loads((tmp_path / "layouts.json").read_text(encoding="utf-8"))
    assert list(layouts.values()) == ["reference", "equal"] * 2
    report = (tmp_path / "layouts_report.md").read_text(encoding="utf-8")
    assert "saved in" in report
