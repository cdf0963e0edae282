"""A folder to import from as a user has it: our package without its own objectives, and another distribution's; and
runs from there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.parallel.launch import torchrun

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "megatron_videogpt"
TINY = HERE.parents[1] / "tests" / "parallel" / "tiny.toml"


def make(folder: Path, *packages: str) -> Path:
    """Copy our package there, without its own objectives, and install the packages beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    for own in (folder / PACKAGE.name / "objective").glob("*/options.py"):
        shutil.rmtree(own.parent)
    for package in packages:
        shutil.copytree(HERE / package, folder / package, ignore=ignored)
    shutil.copyfile(HERE / "worker.py", folder / "worker.py")
    dist = folder / "outside-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    points = "".join(f"{package} = {package}\n" for package in packages)
    (dist / "entry_points.txt").write_text(f"[megatron_videogpt.objectives]\n{points}")
    return folder


def train(site: Path, processes: int, cases: Sequence[Sequence[str]]) -> None:
    """Train tiny.toml with the overrides of each case, one after another in one launch, from the site's copy."""
    listed = site / f"cases_{processes}.json"
    listed.write_text(json.dumps([[str(TINY), list(overrides)] for overrides in cases]), encoding="utf-8")
    # The site first: before the package that is tested, and beside another megatron-core.
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    torchrun(processes, str(site / "worker.py"), str(listed), cold=True, PYTHONPATH=path)


def lines(run: Path) -> list[dict[str, Any]]:
    """Of a run's metrics.jsonl, those with a loss."""
    read = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in read if "loss" in line]
