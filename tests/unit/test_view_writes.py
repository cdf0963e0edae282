"""Nothing is written through `Tensor.view`: MindSpeed makes it a copy where the tensor is strided, and the write is
lost without an error.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "megatron_videogpt"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "hub" not in path.relative_to(PACKAGE).parts)


def views(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is a view, or a part of one, by a call of `view` or by a name."""
    if isinstance(node, ast.Call):
        function = node.func
        return isinstance(function, ast.Attribute) and (function.attr == "view" or views(function.value, names))
    if isinstance(node, ast.Subscript):
        return views(node.value, names)
    return isinstance(node, ast.Name) and node.id in names


def writes(function: ast.AST) -> Iterator[int]:
    """Lines that write in place into what `view` gave."""
    names = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "view"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr.endswith("_") and not called.attr.endswith("__"):
                if views(called.value, names):
                    yield node.lineno
            if any(keyword.arg == "out" and views(keyword.value, names) for keyword in node.keywords):
                yield node.lineno
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            stored = [target for target in targets if isinstance(target, ast.Subscript)]
            if any(views(target.value, names) for target in stored):
                yield node.lineno


def found(text: str) -> list[int]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return sorted({line for function in functions for line in writes(function)})


def test_nothing_is_written_through_a_view() -> None:
    places = [f"{path.relative_to(PACKAGE)}:{line}" for path in FILES for line in found(path.read_text("utf-8"))]
    assert len(FILES) > 100 and not places, "reshape to read, copy_ or unflatten to write: " + ", ".join(places)


@pytest.mark.parametrize(
    "line",
    [
        "x.view(-1).add_(1)",
        "x[0].view(-1)[2:].copy_(y)",
        "x.view(-1)[3] = 1",
        "x.view(-1)[3] += y",
        "torch.add(x, y, out=x.view(2, 2))",
        "v = x.view(2, 2)\n    v[0].zero_()",
        "x.view(-1).index_add_(0, y, y).mul_(2)",
    ],
)
def test_it_would_be_found(line: str) -> None:
    assert found(f"def f(x, y):\n    {line}\n")
    assert not found(f"def f(x, y):\n    {line.replace('view', 'unflatten')}\n")
