"""What only a GPU can show: runs each part in a process of its own with its own time limit, then holds the bars against
what was measured.

    bash tools/gpu_check.sh [--cpu-rehearsal] [--only PART ...] [--out DIR] [--minutes 8.8]

DIR (the environment's OUT, else runs/gpu_check) gets one .md file with the output of each part, their .json results,
and summary.md: the bars with PASS, MISS or NOT MEASURED, then all tables.  A part that fails or takes too long costs
its own bars only.  Exit code: 0 if every bar was passed, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from megatron_videogpt.config import paths  # noqa: E402
from tools.gpu_bars import bars  # noqa: E402
from tools.gpu_versions import versions  # noqa: E402

STEP = ("examples/videogpt/stage4.toml", "--frame", "192x320", "--peak", "989", "--sync-check")
TINY_STEP = (
    "examples/videogpt/quickstart.toml",
    "parallel.tensor=1",
    "parallel.sequence=false",
    "model.num_layers=2",
    "train.micro_batch_size=1",
    "--peak",
    "1",
)
LONG = ("--masks", "stage4-long", "--lengths", "0", "--rows", "384", "--heads", "32", "--head-dims", "96")
SWEEP = (
    "--masks",
    "stage1,stage4,nbp,frame-causal,causal,full",
    "--lengths",
    "16384,65536",
    "--head-dims",
    "96",
    "--rows",
    "384",
    "--heads",
    "32",
)
DIMS = ("--masks", "stage4,causal", "--lengths", "16384", "--head-dims", "64,128", "--rows", "384", "--heads", "32")
GPU, CPU = ("--device", "cuda", "--dtype", "bfloat16"), ("--device", "cpu", "--threads", "1", "--repeat", "1")
TINY = ("--grid", "3,3", "--heads", "2", "--rows", "128")
BACKENDS = "sdpa,sdpa-full,flex,triton,triton/fixed,flash"


@dataclass(frozen=True)
class Part:
    """seconds: its limit; gpu, rehearsal: the command after `python`, on a GPU and in a rehearsal.  OUT in them stands
    for the folder.
    """

    name: str
    seconds: int
    gpu: tuple[str, ...]
    rehearsal: tuple[str, ...]


def attention(name: str, seconds: int, gpu: tuple[str, ...], rehearsal: tuple[str, ...]) -> Part:
    """A run of the attention benchmark."""
    tool, answer = "tools/benchmark_attention.py", ("--json", f"OUT/{name}.json")
    return Part(name, seconds, (tool, *GPU, *gpu, *answer), (tool, *CPU, *TINY, *rehearsal, *answer))


PARTS = (
    Part("versions", 30, ("tools/gpu_check.py", "--versions"), ("tools/gpu_check.py", "--versions")),
    Part(
        "verify",
        120,
        ("tools/gpu_verify.py", "--device", "cuda", "--json", "OUT/verify.json"),
        ("tools/gpu_verify.py", "--device", "cpu", "--layouts", "3", "--json", "OUT/verify.json"),
    ),
    attention(
        "attention",
        120,
        (*LONG, "--backends", BACKENDS, "--repeat", "5"),
        ("--masks", "split", "--lengths", "0", "--backends", f"{BACKENDS},ranged"),
    ),
    Part(
        "step",
        200,
        (
            "tools/benchmark_step.py",
            *STEP,
            "--fit",
            "--backends",
            "flash,triton,dense",
            "--steps",
            "4",
            "--json",
            "OUT/step.json",
        ),
        (
            "tools/benchmark_step.py",
            *TINY_STEP,
            "--backends",
            "flash,triton,ranged,dense",
            "--steps",
            "1",
            "--warmup",
            "1",
            "--json",
            "OUT/step.json",
        ),
    ),
    attention(
        "sweep",
        120,
        (*SWEEP, "--backends", "triton,flash", "--repeat", "3", "--plot", "OUT/sweep.png"),
        (
            "--masks",
            "stage4,causal",
            "--lengths",
            "256,1024",
            "--head-dims",
            "32",
            "--backends",
            "sdpa,ranged",
            "--plot",
            "OUT/sweep.png",
        ),
    ),
    Part(
        "peak",
        40,
        ("tools/measure_peak.py", "--repeat", "3"),
        ("tools/measure_peak.py", "--device", "cpu", "--repeat", "1"),
    ),
    attention(
        "head-dims",
        60,
        (*DIMS, "--backends", "triton,flash", "--repeat", "3"),
        ("--masks", "causal", "--lengths", "256", "--head-dims", "16,32"),
    ),
    Part(
        "tests",
        90,
        (
            "-m",
            "pytest",
            "-q",
            "-x",
            "tests/unit/test_tiles.py",
            "tests/unit/test_attention_choice.py",
            "tests/unit/test_random_layouts.py",
            "-k",
            "not fp32",
        ),
        ("-m", "pytest", "-q", "tests/unit/test_attention_choice.py"),
    ),
    # Beside the step's row, which has Transformer Engine's layers where it is installed.
    Part(
        "local-layers",
        60,
        ("tools/benchmark_step.py", *STEP, "--fit", "--local-layers", "--steps", "4"),
        (
            "tools/benchmark_step.py",
            *TINY_STEP,
            "--backends",
            "ranged",
            "--local-layers",
            "--steps",
            "1",
            "--warmup",
            "1",
        ),
    ),
)


def run(part: Part, out: Path, rehearsal: bool, limit: float) -> str:
    """Run a part; returns what became of it.  Its output is in PART.md, whatever happens."""
    command = [
        sys.executable,
        *(word.replace("OUT/", f"{out}/") for word in (part.rehearsal if rehearsal else part.gpu)),
    ]
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    began = time.monotonic()
    with (out / f"{part.name}.md").open("w", encoding="utf-8") as log:
        # A group of its own, so that compilers' and launchers' children end with it.
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    took = f"{time.monotonic() - began:.0f} s"
    return (
        f"ended after {took}"
        if code == 0
        else f"stopped at its limit of {limit:.0f} s"
        if code is None
        else f"exit code {code} after {took}"
    )


def answer(out: Path, name: str) -> Any:
    """The JSON that a part left, or None."""
    path = out / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main() -> int:
    """Run the parts and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cpu-rehearsal", action="store_true", help="tiny, on a CPU: tests the script, passes few bars"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[part.name for part in PARTS],
        help="these parts; bars of others are taken from files that lie in DIR",
    )
    parser.add_argument(
        "--out", type=paths.path, default=Path(os.environ.get("OUT") or REPOSITORY / "runs" / "gpu_check")
    )
    parser.add_argument("--minutes", type=float, default=8.8, help="time for all parts together")
    parser.add_argument("--versions", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.versions:
        versions()
        return 0
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ended, end = {}, time.monotonic() + 60 * options.minutes
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        left = end - time.monotonic()
        (out / f"{part.name}.json").unlink(missing_ok=True)
        ended[part.name] = (
            run(part, out, options.cpu_rehearsal, min(part.seconds, left))
            if left > 5
            else "not started: no time was left"
        )
        print(f"gpu_check: {part.name}: {ended[part.name]}", flush=True)
    return summarise(out, ended, bars(lambda name: answer(out, name)), options.cpu_rehearsal, print)


def summarise(
    out: Path,
    ended: dict[str, str],
    verdicts: list[tuple[str, str, str]],
    rehearsal: bool,
    say: Callable[[str], None],
    title: str = "GPU check",
    parts: tuple[Part, ...] = PARTS,
) -> int:
    """Write summary.md and print its head; 0 if every bar was passed."""
    lines = [f"# {title}" + (" (rehearsal on a CPU: numbers mean nothing)" if rehearsal else ""), ""]
    lines += [f"- {verdict}: {bar} ({found})" for verdict, bar, found in verdicts]
    lines += ["", *(f"- {name}: {what}" for name, what in ended.items())]
    say("\n".join(lines))
    for part in parts:
        path = out / f"{part.name}.md"
        if path.is_file():
            lines += ["", f"## {part.name}", "", path.read_text(encoding="utf-8", errors="replace").strip()]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"\nall of it: {out / 'summary.md'}")
    return 0 if all(verdict == "PASS" for verdict, _, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
