"""What each test costs: wall seconds, and processor seconds of this process and of all it started.

`pytest --timings FILE` appends one JSON line per test; `python -m tests.timing FILE` prints the slowest tests and the sum of each folder.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 40
elsewhere = [0.0]
"""Processor seconds of processes that are no children of this one: those of the fork server (`tests/forkserver.py`)."""


def processor_seconds() -> float:
    """Of this process, of its children that have ended, and of what the fork server ran for it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime + elsewhere[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep when a phase of this test began."""
    item.stash[STARTED] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Processor seconds of a phase travel with its report, also from a worker of pytest-xdist."""
    report = yield
    now = processor_seconds()
    report.processor, item.stash[STARTED] = now - item.stash[STARTED], now
    return report


STARTED = pytest.StashKey[float]()


class Recorder:
    """Writes the tests' times into a file, in the process that collects the reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Sum the phases of each test."""
        test = self.tests.setdefault(report.nodeid, {"test": report.nodeid, "wall": 0.0, "cpu": 0.0, "outcome": "passed"})
        test["wall"] += report.duration
        test["cpu"] += getattr(report, "processor", 0.0)
        if report.outcome != "passed" and test["outcome"] != "failed":
            test["outcome"] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Append one line per test."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(test) + "\n" for test in self.tests.values())
