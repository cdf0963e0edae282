"""The table of the tests' times and the summary of several turns of pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import timing


def test_turns_are_summed_up_in_the_words_of_one(tmp_path: Path) -> None:
    tests = [
        {"test": "tests/unit/test_a.py::test_one", "wall": 1.0, "cpu": 2.0, "outcome": "passed"},
        {"test": "tests/unit/test_b.py::test_two[tests/data]", "wall": 0.5, "cpu": 0.25, "outcome": "skipped"},
        {"test": "tests/parallel/test_c.py::test_three", "wall": 4.0, "cpu": 6.0, "outcome": "failed"},
        {"test": "tests/parallel/test_c.py::test_four", "wall": 2.0, "cpu": 3.0, "outcome": "error"},
    ]
    (tmp_path / "times").write_text("".join(json.dumps(test) + "\n" for test in tests))
    read = timing.read(tmp_path / "times")
    assert [test["wall"] for test in read] == [4.0, 2.0, 1.0, 0.5]
    table = timing.table(read)
    assert table[1].split() == ["4.0", "6.0", "tests/parallel/test_c.py::test_three"]
    assert [line.split() for line in table[-2:]] == [
        ["6.0", "9.0", "2", "tests/parallel"],
        ["1.5", "2.2", "2", "tests/unit"],
    ]
    assert timing.summary(read, 7.5) == [
        "ERROR tests/parallel/test_c.py::test_four",
        "FAILED tests/parallel/test_c.py::test_three",
        " 1 failed, 1 passed, 1 skipped, 1 error in 7.50s ".center(80, "="),
    ]
    assert timing.summary([], 1)[0].strip("= ") == "no tests ran in 1.00s"


def test_processor_seconds_hold_those_of_children() -> None:
    before = timing.processor_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    timing.elsewhere[0] += 5
    spent = timing.processor_seconds() - before
    timing.elsewhere[0] -= 5
    assert 5.25 < spent
