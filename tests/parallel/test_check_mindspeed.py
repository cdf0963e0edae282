"""`tools/check_mindspeed.py`, on the adaptor that behaves as badly as MindSpeed does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.npu_runs import PACKAGES

from .launch import REPOSITORY, interpreter, run

TOOL = REPOSITORY / "tools" / "check_mindspeed.py"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    result = run(interpreter(TOOL, tmp_path))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"error: {tmp_path}: no mindspeed/megatron_adaptor.py there" in result.stderr


@pytest.mark.long
def test_a_checkout_that_leaves_the_numbers_alone(tmp_path: Path) -> None:
    result = run(interpreter(TOOL, PACKAGES / "mindspeed", "--processes", "1", "2", "--keep", tmp_path), cold=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(lines) == 25 and all(line.startswith("ok     ") for line in lines), result.stdout
    assert any("DP2: losses of 4 steps: " in line for line in lines)


@pytest.mark.long
def test_one_that_changes_them_is_found(tmp_path: Path) -> None:
    """A checkout whose adaptor halves every reduced float32, and one that does not start."""
    package = tmp_path / "changed" / "mindspeed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    text = (PACKAGES / "mindspeed" / "mindspeed" / "megatron_adaptor.py").read_text(encoding="utf-8")
    changed = "\nimport torch\n_scale = torch.nn.functional.silu\n"
    changed += "torch.nn.functional.silu = lambda x, *args, **kwargs: _scale(x, *args, **kwargs) * 1.001\n"
    (package / "megatron_adaptor.py").write_text(text + changed, encoding="utf-8")
    result = run(interpreter(TOOL, package.parent, "--processes", "1"), cold=True)
    assert result.returncode == 1 and "WRONG  one process: losses of 4 steps" in result.stdout, result.stdout
    (package / "megatron_adaptor.py").write_text(text + "import missing_kernels\n", encoding="utf-8")
    result = run(interpreter(TOOL, package.parent, "--processes", "1"), cold=True)
    assert result.returncode == 1 and "No module named 'missing_kernels'" in result.stdout, result.stdout
