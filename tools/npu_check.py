"""What only an Ascend NPU can show: runs each part in a process of its own with its own time limit, then holds bars
against what was measured.

    bash tools/npu_check.sh [--rehearsal] [--only PART ...] [--out DIR] [--minutes 8.8]

DIR (the environment's OUT, else runs/npu_check) gets one .md file with the output of each part, their .json results,
and summary.md: the bars with PASS, MISS or NOT MEASURED, then all tables.  A part that fails or takes too long costs
its own bars only.  Exit code: 0 if every bar was passed, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from megatron_videogpt.config import paths  # noqa: E402
from tools.gpu_bars import Verdict, verdict  # noqa: E402
from tools.gpu_check import Part, answer, run, summarise  # noqa: E402

STEP = (
    *("examples/videogpt/stage4.toml", "train.platform=npu", "--frame", "192x320", "--fit"),
    *("--backends", "npu,npu_dense", "--steps", "3"),
)
# Few layers with the widths of the quickstart's model.
SMALL = (
    *("examples/videogpt/quickstart.toml", "train.platform=npu"),
    *("parallel.tensor=1", "parallel.sequence=false", "model.num_layers=2", "train.micro_batch_size=1"),
    *("--backends", "npu", "--steps", "1", "--warmup", "1"),
)
LONG = ("--masks", "stage4-long", "--lengths", "0", "--heads", "32", "--dtype", "bfloat16", "--repeat", "3")
TINY = ("--masks", "split", "--lengths", "0", "--grid", "3,3", "--heads", "2", "--head-dims", "16", "--repeat", "1")
BACKENDS = ("--backends", "npu,npu_dense,ranged")
FALLS_BACK = "will fall back to run on the CPU"
"""What torch_npu warns of where an operator has no kernel for the device."""


def part(name: str, seconds: int, tool: str, device: tuple[str, ...], rehearsal: tuple[str, ...]) -> Part:
    """One that leaves NAME.json."""
    kept = ("--json", f"OUT/{name}.json")
    return Part(name, seconds, (tool, *device, *kept), (tool, *rehearsal, *kept))


VERIFY = ("--device", "npu", *BACKENDS)
LAYOUTS = ("tools/npu_check.py", "--part", "layouts", "--out", "OUT/")
PARTS = (
    Part("versions", 60, ("tools/npu_check.py", "--part", "versions"), ("tools/npu_check.py", "--part", "versions")),
    part("operators", 60, "tools/npu_operators.py", (), ("--calls", "2")),
    part(
        "verify",
        120,
        "tools/gpu_verify.py",
        (*VERIFY, "--layouts", "40"),
        (*VERIFY, "--layouts", "1", "--dtypes", "bfloat16"),
    ),
    part("step", 120, "tools/benchmark_step.py", STEP, (*SMALL, "--peak", "1")),
    Part("layouts", 150, (*LAYOUTS, "--minutes", "3"), (*LAYOUTS, "--minutes", "2.5", "--rehearsal")),
    Part(
        "fallbacks",
        60,
        ("tools/npu_check.py", "--part", "fallbacks", "--out", "OUT/"),
        ("tools/npu_check.py", "--part", "fallbacks", "--out", "OUT/"),
    ),
    part(
        "attention",
        90,
        "tools/benchmark_attention.py",
        ("--device", "npu", *LONG, "--backends", "npu,npu_dense,sdpa"),
        ("--device", "npu", *TINY, *BACKENDS),
    ),
)


def show_versions() -> None:
    """What runs here."""
    from megatron_videogpt.platforms import activate, npu_versions

    platform = activate("npu")
    import torch
    import torch_npu

    print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; {torch.npu.device_count()} x {platform.device_name}")
    print("\n".join(f"{name} {version}" for name, version in npu_versions.found(torch_npu).items()))
    for command in (["npu-smi", "info"], ["git", "log", "--oneline", "-1"]):
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=REPOSITORY)
            print(done.stdout.strip())
        except OSError:
            print(f"{command[0]}: not here")


def compare_layouts(out: Path, minutes: float, rehearsal: bool) -> int:
    """`cluster_check.sh` on the devices of this machine; leaves layouts.json: layout -> its verdict."""
    from megatron_videogpt.platforms import npu

    count = npu.import_torch_npu().npu.device_count()
    if count < 2:
        print("one NPU: no layouts to compare")
        return 0
    report = out / "layouts_report.md"
    command = ["bash", "tools/cluster_check.sh", "--output", str(report), "--minutes", f"{minutes:g}"]
    environment = {**os.environ, "NPROC_PER_NODE": str(min(count, 8))}
    words = ["examples/videogpt/quickstart.toml", "parallel.tensor=1", "parallel.sequence=false", "train.platform=npu"]
    if rehearsal:
        command += ["--layouts", "1"]
        words += ["model.num_layers=2", "train.global_batch_size=2", "train.micro_batch_size=1"]
    code = subprocess.run([*command, *words], cwd=REPOSITORY, env=environment, check=False).returncode
    lines = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    verdicts = {f"{row[0]} {row[1]}": row[4] for row in rows if len(row) == 5 and row[1] in ("fp32", "bf16")}
    (out / "layouts.json").write_text(json.dumps(verdicts), encoding="utf-8")
    return code


def step_on_device_only(out: Path) -> int:
    """A small step in which an operator that would run on the host is an error (newest releases of torch_npu)."""
    command = [sys.executable, "tools/benchmark_step.py", *SMALL, "--peak", "1", "--json", str(out / "fallbacks.json")]
    environment = {**os.environ, "TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def none_wrong(bar: str, verdicts: dict[str, str] | None) -> Verdict:
    """verdicts: what was compared -> what is wrong, or nothing."""
    bad = [f"{what}: {line}" for what, line in (verdicts or {}).items() if line]
    found = len(bad) if verdicts else None
    return verdict(bar, found, lambda x: x == 0, literal(bad[0]) if bad else f"{len(verdicts or {})} comparisons")


def literal(text: str) -> str:
    """A text that `str.format` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def bars(left: Callable[[str], Any], out: Path) -> Iterator[Verdict]:
    """All verdicts.  left: the JSON of a part by its name, None where there is none."""
    operators, verify = left("operators") or {}, left("verify") or {}
    yield none_wrong("operators: as documented", operators.get("cases"))
    for name in ("npu,", "npu_dense", "ranged", "fused layers"):
        mine = {what: line for what, line in verify.items() if what.startswith(name)}
        yield none_wrong(f"{name.strip(',')}: agrees with reference", mine)
    layouts = {what: "" if line in ("equal", "reference") else line for what, line in (left("layouts") or {}).items()}
    layouts = {what: line for what, line in layouts.items() if not line.startswith("not run")}
    yield none_wrong("layouts: equal over HCCL", layouts)
    most, times = 2 * operators.get("assumed", 0), operators.get("microseconds") or {}
    bar = f"a small call of attention, both ways: at most {most:.0f} us, twice what plans assume"
    yield verdict(bar, times.get("both, merged"), lambda x: x <= most, "{:.0f} us")
    yield from step_bars(left("step"))
    yield from fallback_bars(left("fallbacks"), out)


def step_bars(step: dict[str, Any] | None) -> Iterator[Verdict]:
    """Of the training step with the rectangles of `npu`."""
    row = (step or {}).get("backends", {}).get("npu") or {"note": "absent"}
    took = None if row["note"] else statistics.median(row["step"])
    layers = step["layers"] if step else 0
    yield verdict("a training step runs", took, lambda x: x > 0, f"{{:.3f}} s with {layers} layers")
    ratio = None if row["note"] or not row["memory"] else row["memory"] / step["estimate"]  # type: ignore[index]
    yield verdict(
        "peak memory: the estimate within 15 %", ratio, lambda x: abs(x - 1) <= 0.15, "{:.2f} times the estimate"
    )


def fallback_bars(step: dict[str, Any] | None, out: Path) -> Iterator[Verdict]:
    """From torch_npu's warnings in all parts, and from the step in which they are errors."""
    paths = [out / f"{one.name}.md" for one in PARTS]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]
    lines = [line.strip() for text in texts for line in text.splitlines() if FALLS_BACK in line]
    row = (step or {}).get("backends", {}).get("npu")
    count = None if row is None else len(set(lines)) + bool(row["note"])
    what = literal((lines or [row["note"] if row else ""])[0])
    yield verdict("no operator of a step runs on the host", count, lambda x: x == 0, f"{{:.0f}} {what}".strip())


def main() -> int:
    """Run the parts and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rehearsal", action="store_true", help="tiny, over stand-ins, four times as long: tests the script"
    )
    names = [one.name for one in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, help="these parts; bars of others from files in DIR")
    default = Path(os.environ.get("OUT") or REPOSITORY / "runs" / "npu_check")
    parser.add_argument("--out", type=paths.path, default=default)
    parser.add_argument("--minutes", type=float, default=8.8, help="time for all parts together")
    parser.add_argument("--part", choices=("versions", "layouts", "fallbacks"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out.resolve()
    if options.part == "versions":
        show_versions()
        return 0
    if options.part:
        layouts = options.part == "layouts"
        return compare_layouts(out, options.minutes, options.rehearsal) if layouts else step_on_device_only(out)
    out.mkdir(parents=True, exist_ok=True)
    ended, end = {}, time.monotonic() + 60 * options.minutes
    for one in PARTS:
        if options.only and one.name not in options.only:
            continue
        left = end - time.monotonic()
        (out / f"{one.name}.json").unlink(missing_ok=True)
        limit = min(one.seconds * (4 if options.rehearsal else 1), left)
        ended[one.name] = run(one, out, options.rehearsal, limit) if left > 5 else "not started: no time was left"
        print(f"npu_check: {one.name}: {ended[one.name]}", flush=True)
    verdicts = list(bars(lambda name: answer(out, name), out))
    return summarise(out, ended, verdicts, options.rehearsal, print, "NPU check", PARTS)


if __name__ == "__main__":
    sys.exit(main())
