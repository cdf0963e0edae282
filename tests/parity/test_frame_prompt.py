"""Frame as prompt against recorded numbers in another layout, through the tool, and what it says of other folders."""

from __future__ import annotations

import sys

from tests.parallel.launch import REPOSITORY, run
from tools.parity.vidgpt import LIMITS

TOOL = str(REPOSITORY / "tools" / "check_parity.py")
GOLDEN = REPOSITORY / "tests" / "golden"


def test_every_recorded_case_in_two_context_parallel_processes() -> None:
    result = run([sys.executable, TOOL, "--context-parallel", "2"])
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert sum("nothing is compared under context parallelism" in line for line in lines) == 2
    assert sum("the stand-alone network does not split" in line for line in lines) == 1
    found = {quantity for quantity in LIMITS if any(line.startswith(f"{quantity} ") for line in lines)}
    assert found >= {"positions", "forward", "loss", "gradient norms", "frames held", "sampler chains"}
    assert lines[-1] == "all within limits"


def test_a_folder_of_another_kind_is_refused() -> None:
    result = run([sys.executable, TOOL, str(GOLDEN / "nbp"), "--context-parallel", "2"])
    assert result.returncode == 2 and result.stderr.count("error:") == 1
    assert "nbp: of this kind nothing is compared under context parallelism" in result.stderr
