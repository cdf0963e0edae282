"""docs/ascend.md says what the code says: lines of errors, versions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_videogpt.config.load import tomllib
from megatron_videogpt.platforms.npu_versions import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "megatron_videogpt"
PAGE = (REPOSITORY / "docs" / "ascend.md").read_text(encoding="utf-8")
OTHERS = ("launch.py", "attention/verify.py", "model/fused_npu.py", "plan/communicators.py")
SPEAKERS = [*sorted((PACKAGE / "platforms").glob("*.py")), *(PACKAGE / name for name in OTHERS)]
SCRIPT = REPOSITORY / "examples" / "ascend" / "env.sh"


def texts(path: Path) -> Iterator[str]:
    """Every text of a file as it will be said; "..." where a value is put in that is no constant of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def told(part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        return str(named.get(inner.id, "...")) if isinstance(inner, ast.Name) else "..."

    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(told, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%\w", "...", node.value)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_lines_that_it_shows_are_those_that_are_said() -> None:
    said = [text for path in SPEAKERS for text in texts(path)]
    echoed = re.findall(r'^ *echo "(.+)" >&2$', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    said += [re.sub(r"\$\{.*?\}", "...", text) for text in echoed]
    shown = re.findall(r"^\| `([^`]+)` \|", section("When something goes wrong"), re.MULTILINE)
    assert len(shown) == 29
    for line in shown:
        # What a value may hold besides, and how a message goes on, is left open.
        pattern = r"[\s\S]*".join(re.escape(part) for part in re.split(r"\.\.\.", line))
        assert any(re.match(pattern, text) for text in said), line


def test_the_versions_are_those_that_the_start_compares() -> None:
    rows = re.findall(
        r"^\| \**([\d.post]+)\** \| \**([\d.]+)\** \|\s*\**([\w.]*?)\** \|", section("Versions"), re.MULTILINE
    )
    assert {row[0]: row[1:] for row in rows} == ROWS


def test_what_is_pinned_is_one_row_of_them() -> None:
    lines = (REPOSITORY / "constraints-npu.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert ROWS[pinned["torch_npu"]] == (pinned["torch"], "9.0.0")
    assert (pinned["megatron-core"], pinned["numpy"]) == ("0.16.1", "1.26.0")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = dict(re.findall(r"([\w-]+)==([\w.]+)", " ".join(project["optional-dependencies"]["npu"])))
    assert named == {name: pinned[name] for name in ("torch", "torch_npu", "megatron-core", "numpy", "einops")}
    # Everything that this project asks for has a version there.
    names = {name.lower().replace("_", "-") for name in pinned}
    asked = {re.split(r"[^\w-]", text)[0].lower().replace("_", "-") for text in project["dependencies"]}
    assert asked <= names, asked - names
