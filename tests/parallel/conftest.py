"""A run that several files compare with or continue."""

from __future__ import annotations

from pathlib import Path

import pytest

from .launch import REPOSITORY, cli


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run in one process, undisturbed: 14 steps, checkpoints of all that are saved.  Copy it to change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = cli("train", str(REPOSITORY / "tests" / "parallel" / "tiny.toml"), f"train.output={run}", "checkpoint.keep=0")
    assert result.returncode == 0, result.stderr
    return run
