"""`tools/check_mindspeed.py`, on the adaptor that behaves as badly as MindSpeed does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.npu_runs import PACKAGES, found_in
from tools import check_mindspeed

from .launch import REPOSITORY, interpreter, run

TOOL = REPOSITORY / "tools" / "check_mindspeed.py"
LINES = 36
Result = subprocess.CompletedProcess[str]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    result = run(interpreter(TOOL, tmp_path))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"error: {tmp_path}: no mindspeed/megatron_adaptor.py there" in result.stderr


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What it says of the stand-in in 1, 2 and 4 processes, and the folder where it kept what it launched."""
    kept = tmp_path_factory.mktemp("kept")
    return run(interpreter(TOOL, PACKAGES / "mindspeed", "--keep", kept), timeout=1200, cold=True), kept


@pytest.mark.long
def test_a_checkout_that_leaves_the_numbers_alone(right: tuple[Result, Path]) -> None:
    """All launches with MindSpeed of the suite."""
    result, kept = right
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(lines) == LINES and all(line.startswith("ok     ") for line in lines), result.stdout
    assert any("DP2: losses of 4 steps: " in line for line in lines)
    for processes in (2, 4):
        sent = found_in(kept / f"npu_{processes}")["sent"]
        assert ["hccl", "allreduce", "int64"] in sent and ["hccl", "allreduce", "float32"] in sent


@pytest.mark.long
def test_one_that_changes_them_is_found(
    tmp_path: Path, right: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkout whose adaptor scales an activation, and one that does not start."""
    launch, (_, kept) = check_mindspeed.launch, right

    def of_the_cpu_once(platform: str, *args: Any) -> dict[str, Any]:
        return found_in(kept / "cpu") if platform == "cpu" else launch(platform, *args)

    monkeypatch.setattr(check_mindspeed, "launch", of_the_cpu_once)
    package = tmp_path / "changed" / "mindspeed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    text = (PACKAGES / "mindspeed" / "mindspeed" / "megatron_adaptor.py").read_text(encoding="utf-8")
    changed = "\nimport torch\n_scale = torch.nn.functional.silu\n"
    changed += "torch.nn.functional.silu = lambda x, *args, **kwargs: _scale(x, *args, **kwargs) * 1.001\n"
    for more, said in (
        (changed, "WRONG  one process: losses of 4 steps"),
        ("import missing_kernels\n", "No module named 'missing_kernels'"),
    ):
        (package / "megatron_adaptor.py").write_text(text + more, encoding="utf-8")
        assert check_mindspeed.main([str(package.parent), "--processes", "1"]) == 1
        assert said in capsys.readouterr().out
