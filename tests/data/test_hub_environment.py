"""The exported folder in an environment of its own: torch, transformers and diffusers from the package index, nothing of ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.parallel.launch import REPOSITORY

pytest.importorskip("transformers", reason="the numbers to compare with need transformers (the extra hub)")

from tests.unit.test_hub_pipeline import prepare, run_script  # noqa: E402


@pytest.mark.long
def test_torch_transformers_and_diffusers_suffice(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    packages = [f"torch=={version('torch').split('+')[0]}", "transformers", "diffusers", "pillow"]
    install = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", "-c", str(REPOSITORY / "constraints-cpu.txt"), *packages]
    result = subprocess.run(install, capture_output=True, text=True, timeout=900, check=False)
    if result.returncode:
        pytest.skip(f"pip cannot install {', '.join(packages)} here: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")
    assert run_script(str(python), prepare(tmp_path), tmp_path, block=False, PYTHONPATH="", PYTHONNOUSERSITE="1") == "fine"
    # 1.3 GB, which pytest would keep for three sessions.
    shutil.rmtree(tmp_path / "venv")
