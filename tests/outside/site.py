"""A folder to import from as a user has it: our package without its own objective, and another distribution's."""

from __future__ import annotations

import shutil
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "megatron_videogpt"


def make(folder: Path, *packages: str) -> Path:
    """Copy our package there, without objective/next_clip, and install the packages beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    shutil.rmtree(folder / PACKAGE.name / "objective" / "next_clip")
    for package in packages:
        shutil.copytree(HERE / package, folder / package, ignore=ignored)
    dist = folder / "outside-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    points = "".join(f"{package} = {package}\n" for package in packages)
    (dist / "entry_points.txt").write_text(f"[megatron_videogpt.objectives]\n{points}")
    return folder
