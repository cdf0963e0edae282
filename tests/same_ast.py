#!/usr/bin/env python3
"""Whether two commits differ in the layout of their Python files alone: every syntax tree is the same, but for the
white space of docstrings.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys

EPILOG = """
Exit status: 0 when all files are the same but for their layout, 1 when one is not (it is named), 2 for a wrong command
line.  Comments are no part of a syntax tree.

examples:
  python -m tests.same_ast HEAD~1           that commit and the working tree
  python -m tests.same_ast HEAD~2 HEAD~1    two commits
"""


def normal(text: str) -> str:
    """`ast.dump` of a file, its docstrings (and other strings that stand alone) with single spaces."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            alone = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if alone and isinstance(statement.value.value, str):
                statement.value.value = " ".join(statement.value.value.split())
    return ast.dump(tree)


def git(*arguments: str) -> str:
    """What git prints; CalledProcessError where it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=True).stdout


def files_of(commit: str) -> dict[str, str]:
    """Python files of a commit by name; of the working tree where it is ""."""
    names = git("ls-files", "*.py") if not commit else git("ls-tree", "-r", "--name-only", commit)
    chosen = [name for name in names.splitlines() if name.endswith(".py")]
    if not commit:
        return {name: open(name, encoding="utf-8").read() for name in chosen}
    return {name: git("show", f"{commit}:{name}") for name in chosen}


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """One line for each file that differs in more than its layout."""
    lone = [f"{name}: in one of the two only" for name in sorted(old.keys() ^ new.keys())]
    both = sorted(old.keys() & new.keys())
    return lone + [f"{name}: another syntax tree" for name in both if normal(old[name]) != normal(new[name])]


def main() -> int:
    """Entry point."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("old", metavar="COMMIT", help="a commit")
    parser.add_argument("new", metavar="COMMIT", nargs="?", default="", help="another one (default: the working tree)")
    args = parser.parse_args()
    try:
        old, new = files_of(args.old), files_of(args.new)
    except subprocess.CalledProcessError as error:
        print(f"error: {error.stderr.strip()}", file=sys.stderr)
        return 2
    found = differences(old, new)
    print("\n".join(found) or f"{len(new)} files: the same syntax trees")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
