"""A run that several files compare with or continue."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .launch import REPOSITORY, cli, torchrun

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run in one process, undisturbed: 14 steps, checkpoints of all that are saved.  Copy it to change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = cli("train", CONFIG, f"train.output={run}", "checkpoint.keep=0")
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture(scope="session")
def finished_in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, TP2 with sequence parallelism."""
    run = tmp_path_factory.mktemp("finished_in_two") / "run"
    torchrun(
        2,
        "-m",
        "megatron_videogpt",
        "train",
        CONFIG,
        f"train.output={run}",
        "parallel.tensor=2",
        "parallel.sequence=true",
    )
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
