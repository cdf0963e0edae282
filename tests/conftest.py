"""Fixtures shared by all tests: where reference data and real videos lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
