"""tools/gpu_check.py: its bars, its parts and its summary, without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import gpu_bars, gpu_check, measure_peak

from .test_benchmarks import ROOT


def answers(forward: float, backward: float, mfu: float, building: float, memory: float) -> dict[str, Any]:
    """Results of the parts as a GPU would leave them."""

    def case(rows: int, peak: float) -> dict[str, Any]:
        pairs, work = rows**2 // 4, 32 * 96 / 1e12
        result = {
            "forward": 4 * (rows**2 // 4) * work / forward,
            "backward": 10 * pairs * work / backward,
            "memory": peak,
            "note": "",
        }
        slow = {**result, "forward": 9 * result["forward"], "backward": 9 * result["backward"]}
        return {
            "mask": "stage4",
            "rows": rows,
            "pairs": pairs,
            "heads": 32,
            "head_dim": 96,
            "results": {"sdpa": slow, "flash": result, "triton": result},
        }

    row = {"note": "", "mfu": mfu, "building": building, "step": [1.0, 2.0, 3.0], "waits": []}
    return {
        "verify": {f"{name} bf16": "" for name in ("flash", "triton", "flex", "fused layers")},
        "attention": [case(38_784, 1.0)],
        "sweep": [case(1000, 1.0), case(4000, memory)],
        "step": {"layers": 24, "recompute": "full", "backends": {"flash": row, "dense": {**row, "step": [9.0]}}},
    }


def test_bars_pass_at_their_value_and_not_below() -> None:
    good, bad = answers(450.1, 350.1, 0.42, 0.04, 4.3), answers(299, 199, 0.419, 0.041, 4.5)
    verdicts = gpu_bars.bars(good.get)
    assert {verdict for verdict, _, _ in verdicts} == {"PASS"} and len(verdicts) == 15
    missed = [bar for verdict, bar, _ in gpu_bars.bars(bad.get) if verdict == "MISS"]
    assert len(missed) == 8 and not any("dense" in bar or "waits" in bar for bar in missed)
    assert {verdict for verdict, _, _ in gpu_bars.bars(lambda name: None)} == {"NOT MEASURED"}
    bad["verify"]["triton fp16"] = "gradient of q by 1e-1"
    assert ("MISS", "triton: agrees with reference", "triton fp16: gradient of q by 1e-1") in gpu_bars.bars(bad.get)


def test_a_part_that_hangs_costs_its_own_time_only(tmp_path: Path) -> None:
    hang = (
        "-c",
        "import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', 'import "
        f"time; time.sleep(60)', '{tmp_path}'])",
    )
    began = time.monotonic()
    assert gpu_check.run(gpu_check.Part("hang", 4, hang, hang), tmp_path, True, 4.0) == "stopped at its limit of 4 s"
    assert time.monotonic() - began < 30 and (tmp_path / "hang.md").read_text() == "started\n"
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"time.sleep(60) {tmp_path}" not in processes
    fails = ("-c", "raise SystemExit(3)")
    assert gpu_check.run(gpu_check.Part("fails", 9, fails, fails), tmp_path, False, 30.0).startswith("exit code 3")


def test_the_summary_holds_bars_and_tables(tmp_path: Path) -> None:
    (tmp_path / "peak.md").write_text("a table")
    said: list[str] = []
    code = gpu_check.summarise(
        tmp_path, {"peak": "ended after 1 s"}, [("PASS", "fast", "9"), ("MISS", "faster", "8")], False, said.append
    )
    text = (tmp_path / "summary.md").read_text()
    assert code == 1 and "- MISS: faster (8)" in text and "## peak\n\na table" in text and "- PASS: fast (9)" in said[0]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
def test_without_a_gpu_the_script_says_so_in_one_line() -> None:
    done = subprocess.run(["bash", str(ROOT / "tools" / "gpu_check.sh")], capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("gpu_check: no NVIDIA GPU")
        and done.stderr.count("\n") == 1
    )


def test_peak_prints_the_override(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measure_peak, "SHAPES", {"cpu": ((32, 32, 32), (64, 32, 16))})
    monkeypatch.setattr(
        measure_peak,
        "tflops",
        lambda rows, columns, inner, dtype, device, repeat: rows / 100 + (dtype == torch.bfloat16),
    )
    monkeypatch.setattr(sys, "argv", ["measure_peak.py", "--device", "cpu"])
    measure_peak.main()
    assert "logging.peak_tflops=1.64 (float32: 0.64)" in capsys.readouterr().out
