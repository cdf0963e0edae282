"""Training steps of this checkout against those of another commit, in turns, for `benchmark_step.py --against`.

A machine's speed drifts by more than the few per cent that are looked for, so both commits take turns, the order
changes from round to round, and the medians over all rounds are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_videogpt.errors import UserError
from tools.measuring.report import markdown

ROOT = Path(__file__).resolve().parents[2]
OWN = {"--against", "--rounds", "--processes", "--json"}
"""Options that the measuring processes do not get: other commits may not know them, and each writes a file
of its own.
"""

Times = dict[str, list[float]]
"""Backend -> seconds of its timed steps."""


def passed_on(arguments: Sequence[str]) -> list[str]:
    """The command line without `OWN` options and their values (``--rounds 3`` and ``--rounds=3``)."""
    kept, skip = [], False
    for text in arguments:
        if skip:
            skip = False
        elif text.partition("=")[0] in OWN:
            skip = "=" not in text
        else:
            kept.append(text)
    return kept


def turns(rounds: int) -> Iterator[str]:
    """``this`` and ``other``, each once a round; the one that came last begins the next round, so that a steady drift
    cancels.
    """
    for number in range(rounds):
        yield from ("this", "other") if number % 2 == 0 else ("other", "this")


def table(this: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], commit: str) -> str:
    """Markdown: per backend the medians in milliseconds, their ratio, and the span from the smallest to the largest of
    each.

    Raises:
        UserError: a backend has no times on one side, so that there is nothing to compare.
    """
    rows = []
    for name in dict.fromkeys([*this, *other]):
        both = this.get(name), other.get(name)
        if not both[0] or not both[1]:
            raise UserError(
                f"--against {commit}: attention backend {name} was not measured in "
                f"{'this checkout' if not both[0] else commit}; leave it out"
            )
        medians = [1e3 * statistics.median(times) for times in (both[0], both[1])]
        spreads = [f"{1e3 * min(times):.1f} to {1e3 * max(times):.1f}" for times in (both[0], both[1])]
        rows.append([name, *(f"{one:.1f}" for one in medians), f"{medians[0] / medians[1]:.3f}", *spreads])
    columns = f"attention|this, ms|{commit}, ms|this / {commit}|spread this|spread {commit}".split("|")
    return markdown(columns, rows)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary git worktree of a commit of this repository; UserError where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "other"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if made.returncode:
            raise UserError(
                f"--against {commit}: expected a commit of the git repository {ROOT}, but git says: "
                f"{made.stderr.strip().splitlines()[-1]}"
            )
        try:
            yield tree
        finally:
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], capture_output=True, check=False
            )


def measure(tree: Path, arguments: Sequence[str], processes: int) -> Times:
    """Run the `benchmark_step.py` of a checkout in processes of its own; raises UserError with its last line where it
    fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        launcher = (
            ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
        )
        command = [
            sys.executable,
            *launcher,
            str(tree / "tools" / "benchmark_step.py"),
            *arguments,
            "--json",
            str(results),
        ]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            raise UserError(
                f"{tree}: benchmark_step failed: {' '.join((done.stderr.strip().splitlines() or ['no output'])[-1:])}"
            )
        backends = json.loads(results.read_text(encoding="utf-8"))["backends"]
    return {name: result["step"] for name, result in backends.items() if not result["note"]}


def compare(commit: str, arguments: Sequence[str], rounds: int, processes: int) -> str:
    """Measure this checkout and `commit` in `rounds` rounds; returns the table."""
    found: dict[str, Times] = {"this": {}, "other": {}}
    with checkout(commit) as tree:
        for number, which in enumerate(turns(rounds)):
            for name, times in measure(ROOT if which == "this" else tree, passed_on(arguments), processes).items():
                found[which].setdefault(name, []).extend(times)
            print(
                f"round {number // 2 + 1} of {rounds}: {'this checkout' if which == 'this' else commit} measured",
                file=sys.stderr,
                flush=True,
            )
    return table(found["this"], found["other"], commit)
