"""Train the same small model in every parallel layout, over real torchrun processes, and compare with one process."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError
from tests.layouts.cases import ALL_SINGLE, BATCH, CASES, MODELS, SPLITS, STEPS, Case, reference
from tests.layouts.texts import TEXT, facts, machine, read

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS = {"fp32": {"loss": 1e-5, "norm": 1e-5, "parameter": 1e-5}, "bf16": {"loss": 5e-3, "norm": 1e-2, "update": 0.15}}
"""Largest relative difference from one process in the same precision.

update: of the float32 main parameters and their averages, against how far training has moved them, which for a norm's
weight is 0.2 % of it: a limit against the parameter itself could not fail there.  A value is rounded to bf16 by 2^-9 of
itself at most; a gradient here has passed some 40 such roundings, so that its errors add up to about 1 % of its norm,
and as Adam divides every element by its own size, those below the error count in full: a few per cent of the update
(5.4 % at most in the rows where it was measured, 0.003 % where a layout adds in the same order).  Half of a gradient
gone missing changes the direction of the update by tens of per cent.
"""
PATIENCE = 240
"""Seconds without a finished layout after which a launch counts as hung."""

EPILOG = f"""
Every layout takes {STEPS} steps of AdamW on the same {STEPS * BATCH} samples.  Compared with one process in the same
precision: the loss and the gradient norm of each step (largest relative difference), and every main parameter and
average afterwards: norm of the difference / norm of the parameter, and / norm of what training has added to it (the
worst ones are named). Limits: fp32 {LIMITS["fp32"]["loss"]:g} for losses, gradient norms and parameters; bf16
{LIMITS["bf16"]["loss"]:g} for losses, {LIMITS["bf16"]["norm"]:g} for gradient norms, {LIMITS["bf16"]["update"]:g} for
what was added. Layouts of the same number of processes share one launch.  Exit status: 0 when every layout agrees, 1
when one does not, 2 for a wrong command line.

examples:
  python tools/compare_layouts.py --fast                              the layouts that the test suite runs, fp32
  python tools/compare_layouts.py --only "TP2 x CP2"                  layouts whose name contains the text
  python tools/compare_layouts.py --output docs/parity.md             everything, and the table as a file
  python tools/compare_layouts.py --list                              names of all layouts
"""


@dataclass(frozen=True)
class Difference:
    """How far a layout is from one process: largest relative differences, and the parameters that are worst.

    parameter: against the parameter's norm; update: against the norm of what training has added to it.
    """

    loss: float
    norm: float
    parameter: float
    worst: str
    update: float
    worst_update: str

    def agrees(self, precision: str) -> bool:
        """Whether all that has a limit is within it; a NaN is not."""
        return all(getattr(self, name) <= limit for name, limit in LIMITS[precision].items())


def compare(
    found: tuple[dict[str, Any], dict[str, Any]], expected: tuple[dict[str, Any], dict[str, Any]]
) -> Difference:
    """(JSON, parameters) of a layout and of its reference -> their difference; raises ValueError when they do not hold
    the same parameters.
    """
    if found[1].keys() != expected[1].keys():
        raise UserError(f"parameters differ: {sorted(found[1].keys() ^ expected[1].keys())[:3]}")
    if len(found[0]["losses"]) != len(expected[0]["losses"]):
        raise UserError(f"{len(found[0]['losses'])} steps, not {len(expected[0]['losses'])}")

    def relative(name: str) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(found[0][name], expected[0][name]))

    def largest(sizes: dict[str, float]) -> tuple[float, str]:
        ratios = {
            name: float((found[1][name].double() - value.double()).norm()) / sizes[name]
            for name, value in expected[1].items()
        }
        # NaN sorts as the largest: it must not hide behind a number.
        worst = max(ratios, key=lambda name: (ratios[name] != ratios[name], ratios[name]))
        return ratios[worst], worst

    norms = {name: float(value.double().norm()) for name, value in expected[1].items()}
    return Difference(relative("losses"), relative("norms"), *largest(norms), *largest(expected[0]["moved"]))


def launch(processes: int, cases: list[Case], folder: Path, finished: Callable[[Case], None]) -> str:
    """Run cases of one process count in one torchrun, in order; returns "" or why it ended early."""
    asked, log = folder / "asked.json", folder / "log.txt"
    asked.write_text(json.dumps({case.key: case.all_options for case in cases}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += [str(REPOSITORY / "tests" / "layouts" / "worker.py"), str(asked), str(folder)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    waiting, moved = list(cases), time.monotonic()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                ended = process.poll() is not None
                while waiting and (folder / f"{waiting[0].key}.json").is_file():
                    finished(waiting.pop(0))
                    moved = time.monotonic()
                if ended:
                    break
                if time.monotonic() - moved > PATIENCE:
                    return f"no result within {PATIENCE} s"
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return "" if process.returncode == 0 and not waiting else reason(log.read_text(encoding="utf-8", errors="replace"))


def reason(log: str) -> str:
    """The line of a worker's log that says what went wrong."""
    raised = re.findall(r"^(?:\[rank\d+\]:\s*)?(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", log, flags=re.MULTILINE)
    return (raised or log.strip().splitlines()[-1:] or ["no output"])[0][:200]


def run_cases(
    cases: Iterable[Case], folder: Path, finished: Callable[[Case], None] = lambda case: None
) -> dict[Case, str]:
    """Run cases and their references into `folder`; returns the ones that failed to run, with the reason."""
    cases = list(cases)
    needed = list(dict.fromkeys([*(reference(case) for case in cases), *cases]))
    failed: dict[Case, str] = {}
    for processes in sorted({case.processes for case in needed}):
        left = [case for case in needed if case.processes == processes and not (folder / f"{case.key}.json").is_file()]
        while left:
            problem = launch(processes, left, folder, finished)
            left = [case for case in left if not (folder / f"{case.key}.json").is_file()]
            if left:
                # The first without a result is the one that ended the launch.
                failed[left[0]] = problem
                finished(left.pop(0))
    return failed


def row(case: Case, folder: Path, failed: dict[Case, str]) -> tuple[str, bool]:
    """A case's line of the table, and whether it agrees."""
    found, expected = read(folder, case), read(folder, reference(case))
    name = case.name + ("" if case.model == "plain" else f", {case.model}")
    if found is None or expected is None:
        return (
            f"| {name} | {case.processes} | {case.precision} | | | | | **did not run**: "
            f"{failed.get(case) or 'no reference'} |",
            False,
        )
    difference = compare(found, expected)
    good = difference.agrees(case.precision)
    numbers = f"{difference.loss:.1e} | {difference.norm:.1e} | {difference.parameter:.1e} `{difference.worst}`"
    numbers += f" | {difference.update:.1e} `{difference.worst_update}`"
    return f"| {name} | {case.processes} | {case.precision} | {numbers} | {'agrees' if good else '**differs**'} |", good


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=paths.path, metavar="FILE", help="also write the table, with its conditions, as Markdown"
    )
    parser.add_argument("--only", default="", metavar="NAME", help="layouts whose name contains this")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "both"),
        help="default both (bf16 for a selection of the layouts); fp32 with --fast",
    )
    parser.add_argument("--fast", action="store_true", help="only the layouts that the test suite runs")
    parser.add_argument("--list", action="store_true", help="print the names of the layouts and stop")
    parser.add_argument(
        "--keep",
        type=paths.path,
        metavar="FOLDER",
        help="keep the results here; what is there is not run again, so delete it after changes",
    )
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Case]:
    """The cases that the command line asks for."""
    wanted = args.precision or ("fp32" if args.fast else "both")
    precisions = ("fp32", "bf16") if wanted == "both" else (wanted,)
    cases = [case for case in CASES if args.only in f"{case.name}, {case.model}" and (case.fast or not args.fast)]
    return [
        replace(case, precision=precision)
        for precision in precisions
        for case in cases
        if precision == "fp32" or case.bf16
    ]


def report(args: argparse.Namespace, cases: list[Case], folder: Path) -> tuple[str, bool]:
    """Run the cases with a progress display -> (the Markdown file's text, whether all agree)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len({*cases, *(reference(case) for case in cases)})
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=total)
        failed = run_cases(
            cases,
            folder,
            lambda case: progress.update(
                task, advance=1, description=f"{case.name} ({case.processes} processes, {case.precision})"
            ),
        )
    lines, good = zip(*(row(case, folder, failed) for case in cases))
    verdict = f"{sum(good)} of {len(cases)} agree."
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "megatron-core", "numpy"))
    text = TEXT.format(
        command=" ".join(["python", "tools/compare_layouts.py", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        machine=machine(),
        versions=f"Python {platform.python_version()}, {versions}",
        seconds=round(sum(result[0]["seconds"] for case in cases if (result := read(folder, case)))),
        steps=STEPS,
        batch=BATCH,
        splits=" ".join("+".join(map(str, split)) for split in SPLITS),
        single=ALL_SINGLE + 1,
        facts=facts(cases, folder),
        models="; ".join(f"*{name}*: `{options}`" for name, options in MODELS.items()),
        table="\n".join(lines),
        verdict=verdict,
        **LIMITS,
    )
    return text, all(good)


def main() -> int:
    """Entry point."""
    args = arguments()
    cases = chosen(args)
    if not cases:
        print(f"error: no layout's name contains {args.only!r}; --list prints the names", file=sys.stderr)
        return 2
    if args.list:
        print(
            "\n".join(
                dict.fromkeys(f"{case.name}, {case.model}" + ("   (fast)" if case.fast else "") for case in cases)
            )
        )
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        text, good = report(args, cases, folder)
    print(text[text.index("| layout") :].rstrip())
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
