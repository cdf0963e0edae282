"""The recorded numbers of the original, and that the tool which compares with them can fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.parallel.launch import REPOSITORY, run

TOOL = str(REPOSITORY / "tools" / "check_parity.py")
GOLDEN = REPOSITORY / "tests" / "golden"
QUANTITIES = (
    "ids",
    "positions",
    "masks",
    "noising",
    "forward",
    "intermediates",
    "loss",
    "gradient norms",
    "gradients",
    "sampler",
    "cached sampler",
    "components",
)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_recorded_case(reference: Path, processes: int) -> None:
    # Without a folder the tool takes the one that comes with it.
    folder = [] if processes == 1 and reference == GOLDEN else [str(reference)]
    result = run([sys.executable, TOOL, *folder, "--tensor-parallel", str(processes)])
    assert result.returncode == 0, result.stdout + result.stderr
    for quantity in QUANTITIES:
        assert any(line.startswith(f"{quantity} ") for line in result.stdout.splitlines()), (
            f"{quantity} was not compared"
        )


def test_a_wrong_number_fails(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference / "tiny_mha", tmp_path / "tiny_mha")
    shutil.copy(reference / "forward_train.json", tmp_path)
    tensors = load_file(reference / "forward_train.safetensors")
    case = json.loads((reference / "forward_train.json").read_text())["cases"][0]
    name = case["samples"][0]["tensors"]["pred"]["key"]
    tensors[name] = tensors[name] + 1e-3 * tensors[name].abs().max()
    save_file(tensors, tmp_path / "forward_train.safetensors")
    result = run([sys.executable, TOOL, str(tmp_path)])
    assert result.returncode == 1
    assert "FAILED forward" in result.stdout and case["name"] in result.stdout


def test_a_folder_without_cases(tmp_path: Path) -> None:
    result = run([sys.executable, TOOL, str(tmp_path)])
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1 and "no cases found" in result.stderr
