"""Upper floors import lower ones, never the other way, and no two files import each other: the order of docs/map.md,
held against every import.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_videogpt"


def floors() -> list[set[str]]:
    """The first column of the map's first table, from top to bottom: those of the package that share a floor."""
    text = (REPOSITORY / "docs" / "map.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [{name.strip("/").removesuffix(".py") for name in re.findall(r"`([\w/.]+)`", row)} for row in rows]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package, which lies in `root`."""
    found = {
        ".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted((root / PACKAGE).rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imported(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, at its top, in functions or for types alone; `from a import b` may mean a
    module or what it holds.
    """
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join(filter(None, [*base, node.module]))
            yield from (f"{start}.{name.name}" for name in node.names)


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports.  A package itself counts where something of its own is asked of
    it.
    """
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        targets = (name if name in known else name.rpartition(".")[0] for name in imported(path, module))
        graph[module] = {target for target in targets if target in known and target != module}
    return graph


def upward(graph: dict[str, set[str]], order: list[set[str]]) -> list[str]:
    """Imports of the same floor's other rooms, of a higher floor, or of what is on no floor."""
    place = {name: number for number, names in enumerate(order) for name in names}

    def room(module: str) -> str:
        return module.split(".")[1]

    inside = {module: targets for module, targets in graph.items() if module != PACKAGE}
    found = []
    for module, targets in inside.items():
        for target in targets:
            fine = target != PACKAGE and (room(module) == room(target) or place[room(target)] > place[room(module)])
            found += [] if fine else [f"{module} -> {target}"]
    return sorted(found)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that reach each other."""
    reached = {module: reach(graph, module) for module in graph}
    groups = {
        tuple(sorted({module} | {other for other in reached[module] if module in reached[other]})) for module in graph
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules at the end of any chain of imports."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows(REPOSITORY)


def test_every_room_is_on_one_floor() -> None:
    named = [name for names in floors() for name in names]
    rooms = {
        path.stem
        for path in (REPOSITORY / PACKAGE).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    } - {"__init__"}
    assert sorted(named) == sorted(rooms)


def test_no_import_runs_up_and_none_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 150 and sum(map(len, graph.values())) > 500
    assert upward(graph, floors()) == []
    assert circles(graph) == []


NAMED = {
    f"{PACKAGE}.convert.table": "released folders hold Video-GPT, which is one objective's network",
    f"{PACKAGE}.convert.forward": "the same: what the two forms of it predict",
}
"""Modules that may import one objective's package, and why."""


def test_nobody_else_imports_the_package_of_an_objective(graph: dict[str, set[str]]) -> None:
    """What they need comes from `objective.build`, by name."""
    packages = [path.name for path in (REPOSITORY / PACKAGE / "objective").iterdir() if (path / "options.py").is_file()]
    assert "next_clip" in packages
    for package in packages:
        folder = f"{PACKAGE}.objective.{package}"
        found = {
            module
            for module, targets in graph.items()
            if module not in NAMED and not module.startswith(f"{folder}.")
            for target in targets
            if target.startswith(folder)
        }
        assert found == set(), package
    assert all(any(".objective." in target for target in graph[module]) for module in NAMED), "no longer needed"


def planted(folder: Path, file: str, line: str) -> dict[str, set[str]]:
    """The arrows of a copy of the package in which a file has one more line."""
    shutil.copytree(
        REPOSITORY / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    with (folder / PACKAGE / file).open("a", encoding="utf-8") as out:
        out.write(f"\n{line}\n")
    return arrows(folder)


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("config/load.py", "from ..plan import estimate", "config.load -> megatron_videogpt.plan.estimate"),
        (
            "config/load.py",
            "def late():\n    import megatron_videogpt.objective.build",
            "config.load -> megatron_videogpt.objective.build",
        ),
        ("sample/job.py", "from ..train.run import Run", "sample.job -> megatron_videogpt.train.run"),
        (
            "hub/common/layers_videogpt.py",
            "from ...errors import UserError",
            "hub.common.layers_videogpt -> megatron_videogpt.errors",
        ),
        ("data/bad.py", "from .. import __version__", "data.bad -> megatron_videogpt"),
    ],
)
def test_a_planted_import_that_runs_up_is_found(file: str, line: str, found: str, tmp_path: Path) -> None:
    assert upward(planted(tmp_path, file, line), floors()) == [f"{PACKAGE}.{found}"]


@pytest.mark.parametrize(
    ("file", "line", "pair"),
    [
        (
            "data/order.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .plans import Plans",
            ["data.order", "data.plans"],
        ),
        ("train/statistics.py", "from . import run", ["train.run", "train.statistics"]),
    ],
)
def test_a_planted_circle_is_found(file: str, line: str, pair: list[str], tmp_path: Path) -> None:
    (group,) = circles(planted(tmp_path, file, line))
    assert {f"{PACKAGE}.{name}" for name in pair} <= set(group)
