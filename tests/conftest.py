"""Fixtures that many tests use: golden numbers, real videos, process groups."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_videogpt.platforms import Platform, activate
from tests import clips, timing

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option of our own."""
    parser.addoption(
        "--timings", type=Path, metavar="FILE", help="append the times of all tests to FILE (see tests/timing.py)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Times are written where the reports come together."""
    config.pluginmanager.register(timing)
    path = config.getoption("--timings")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(timing.Recorder(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, so that none of them is left to one worker alone at the end."""
    long = Counter(item.path for item in items if item.get_closest_marker("long"))
    items.sort(key=lambda item: -long[item.path])


def _folder(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default)
    assert path.is_dir(), f"{variable}={path}: no such folder"
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the golden numbers: tests/golden, or another of its format that MVG_REFERENCE names."""
    return _folder("MVG_REFERENCE", REPOSITORY / "tests" / "golden")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of clips: the real ones of tests/videos, what tests/clips.py makes of them, and what is in MVG_VIDEOS."""
    _folder("MVG_VIDEOS", clips.HERE)
    return clips.collect(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session", autouse=True)
def platform() -> Platform:
    """The CPU, before any test: whichever comes first in its process may be one that imports megatron-core."""
    return activate("cpu")


@pytest.fixture(scope="module")
def processes(platform: Platform) -> Iterator[None]:
    """Process groups of one process on the CPU."""
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.platforms import world

    world.start(platform, ParallelConfig())
    yield
    world.stop()
