"""The processes that tests start import the megatron-core that is to be tested: the installed one, or that of
tests/newest_megatron.sh.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from .launch import REPOSITORY, release, run, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "release_worker.py")


def imported(folder: Path) -> list[tuple[str, str]]:
    """Version and place by rank."""
    return [tuple(json.loads(path.read_text())) for path in sorted(folder.iterdir())]


def test_every_rank_imports_the_release_to_be_tested(tmp_path: Path) -> None:
    for name in ("ranks", "alone"):
        (tmp_path / name).mkdir()
    torchrun(2, WORKER, str(tmp_path / "ranks"))
    alone = run([sys.executable, WORKER, str(tmp_path / "alone")])
    assert alone.returncode == 0, alone.stderr
    found = [*imported(tmp_path / "ranks"), *imported(tmp_path / "alone")]
    assert len(found) == 3 and len(set(found)) == 1 and found[0][0] == release(), found


def test_documents_and_requirements_name_the_newest_release() -> None:
    """Its number stands in tests/newest_megatron.txt; where else it is named it is the same one."""
    (newest,) = re.findall(
        r"^megatron-core==(\S+)$", (REPOSITORY / "tests" / "newest_megatron.txt").read_text(), re.MULTILINE
    )
    for name in (
        "docs/installing.md",
        "pyproject.toml",
        "megatron_videogpt/platforms/compat.py",
        "megatron_videogpt/platforms/compat_saving.py",
    ):
        ranges = re.findall(r"0\.16\.1\s+to\s+(\d+\.\d+\.\d+)", (REPOSITORY / name).read_text())
        assert ranges and set(ranges) == {newest}, name
