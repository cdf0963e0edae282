"""What each test costs: wall seconds, and processor seconds of this process and of all it started.

`pytest --timings FILE` appends one JSON line per test; `python -m tests.timing FILE --seconds N` sums up several runs
of pytest in the words of one, and with `--times` prints the slowest tests and the sum of each folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 40
elsewhere = [0.0]
"""Processor seconds of processes that are no children of this one: those of the fork server (`tests/forkserver.py`)."""

STARTED = pytest.StashKey[float]()


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


class Recorder:
    """Writes the tests' times into a file, in the process that collects the reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Sum the phases of each test."""
        test = self._test(report.nodeid)
        test["wall"] += report.duration
        test["cpu"] += getattr(report, "processor", 0.0)
        if report.outcome != "passed" and test["outcome"] in ("passed", "skipped"):
            test["outcome"] = "error" if report.failed and report.when != "call" else report.outcome

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self._test(report.nodeid)["outcome"] = "error"

    def _test(self, name: str) -> dict[str, Any]:
        return self.tests.setdefault(name, {"test": name, "wall": 0.0, "cpu": 0.0, "outcome": "passed"})

    def pytest_sessionfinish(self) -> None:
        """Append one line per test."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(test) + "\n" for test in self.tests.values())


def read(path: Path) -> list[dict[str, Any]]:
    """All tests of a file, those that took longest first."""
    return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda test: -test["wall"])


def table(tests: list[dict[str, Any]]) -> list[str]:
    """The slowest tests, and seconds and number of tests by folder.  Processor seconds are what a busy machine changes
    least.
    """
    lines = [f"slowest {min(SLOWEST, len(tests))} tests: wall seconds, processor seconds"]
    lines += [f"{test['wall']:8.1f} {test['cpu']:8.1f}  {test['test']}" for test in tests[:SLOWEST]]
    lines += ["", "by folder: wall seconds, processor seconds, tests"]
    for folder in sorted({_folder(test) for test in tests}):
        inside = [test for test in tests if _folder(test) == folder]
        lines.append(
            f"{sum(test['wall'] for test in inside):8.1f} {sum(test['cpu'] for test in inside):8.1f} "
            f"{len(inside):6d}  {folder}"
        )
    return lines


def _folder(test: dict[str, Any]) -> str:
    return str(test["test"]).partition("::")[0].rpartition("/")[0]


def summary(tests: list[dict[str, Any]], seconds: float) -> list[str]:
    """What failed, and pytest's last line."""
    counts = Counter(test["outcome"] for test in tests)
    said = (
        ", ".join(
            f"{counts[outcome]} {outcome}" for outcome in ("failed", "passed", "skipped", "error") if counts[outcome]
        )
        or "no tests ran"
    )
    bad = sorted(
        f"{test['outcome'].upper()} {test['test']}" for test in tests if test["outcome"] in ("failed", "error")
    )
    return bad + [f" {said} in {seconds:.2f}s ".center(80, "=")]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    tests = read(options.file)
    for line in [*(table(tests) if options.times else []), *summary(tests, options.seconds)]:
        print(line)


if __name__ == "__main__":
    main()
