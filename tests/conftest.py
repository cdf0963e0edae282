"""Fixtures shared by all tests: where reference data and real videos lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import timing

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option of our own."""
    parser.addoption("--timings", type=Path, metavar="FILE", help="append the times of all tests to FILE (see tests/timing.py)")


def pytest_configure(config: pytest.Config) -> None:
    """Times are written where the reports come together."""
    config.pluginmanager.register(timing)
    path = config.getoption("--timings")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(timing.Recorder(path))


def _folder(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / name)
    if not path.is_dir():
        pytest.skip(f"{path} is not on this machine; set {variable} to a folder with that data")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the golden tensors."""
    return _folder("MVG_REFERENCE", "reference")


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips."""
    return _folder("MVG_VIDEOS", "videos")


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    """Process groups of one process on the CPU."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.train import distributed

    distributed.start(platform, ParallelConfig())
    yield
    distributed.stop()
