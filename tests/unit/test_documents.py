"""What the documents point at exists in a clone: links, files, options; and the package brings its data files."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from megatron_videogpt.config.load import tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "megatron_videogpt"
ELSEWHERE = re.compile(r"(?<![\w/])(?:\.\./)*shared/|\"shared\"|\bDESIGN\b|(?<!\[)\bissue \d+\b")
"""Folders and papers of whoever wrote the code, which nobody else has."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUFFIX = r"\.(?:py|md|toml|sh|sbatch|txt|json|png|safetensors)"
FILE = re.compile(rf"(?<![\w/.:<{{-])((?:[\w-]+/)+[\w.-]+{SUFFIX})(?![\w/*])")
THEIRS = ("runs/", "checkpoints/", "train.output/", "00000/", "ucf", "msrvtt/", "mylab/")
"""Beginnings of names of other files: what a command writes, what is in a published data set, and the distribution that
a reader of docs/extending.md makes (tests/parallel/test_extending.py makes it).
"""


def tracked() -> list[Path]:
    """All files of the project: what git knows, or what is there where the project came without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        there = (path for path in REPOSITORY.rglob("*") if path.is_file())
        return [path for path in there if not {".git", ".venv", "runs"} & set(path.relative_to(REPOSITORY).parts)]
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def documents() -> list[Path]:
    patterns = ("README.md", "docs/*.md", "tests/*/README.md", "megatron_videogpt/*/*.md")
    return [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]


def test_nothing_points_at_what_a_clone_does_not_have() -> None:
    found = []
    for path in tracked():
        name = path.relative_to(REPOSITORY).as_posix()
        # The history, what the machine of the whole CI may have besides, and this file.
        if name in ("CHANGELOG.md", ".ci/run", Path(__file__).relative_to(REPOSITORY).as_posix()):
            continue
        lines = enumerate(text_of(path).splitlines(), 1)
        found += [f"{name}:{number}: {line.strip()}" for number, line in lines if ELSEWHERE.search(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = []
    for link in LINK.findall(text):
        target, _, section = link.partition("#")
        if "://" in target:
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (section and section not in anchors(file)):
            missing.append(link)
    for name in FILE.findall(text):
        roots = (REPOSITORY, PACKAGE, path.parent)
        if not name.startswith(THEIRS) and not any((root / name).exists() for root in roots):
            missing.append(name)
    assert not missing, f"{path.name} names {missing}"


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a document's headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_all_data_files_of_the_package_are_in_the_wheel() -> None:
    """Weights, their shape, and the attribution that the licences of their clips ask for."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["megatron_videogpt"]
    inside = (path for path in tracked() if path.is_relative_to(PACKAGE) and path.suffix != ".py")
    files = {path.relative_to(PACKAGE).as_posix() for path in inside}
    assert "codec/ATTRIBUTION.md" in files
    assert [name for name in sorted(files) if not any(fnmatch(name, pattern) for pattern in patterns)] == []
