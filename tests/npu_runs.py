"""The same small runs on the CPU platform and on NPUs, compared: what `tests/parallel/test_npu.py` and
`tools/check_mindspeed.py` launch.  No torch at import time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = REPOSITORY / "tests" / "ascend" / "packages"
WORKER = str(REPOSITORY / "tests" / "parallel" / "npu_worker.py")
HAS = ("torch_npu", "mindspeed", "einops")
"""Stand-ins of a machine with MindSpeed."""

COMMON = ("model.num_layers=4", "optimizer.schedule=constant", "optimizer.warmup_steps=0", "checkpoint.every=0")
REDUCED = {"int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"}
"""What HCCL reduces."""
CLOSE, ROUNDED = 1e-5, 1e-2
"""Largest relative difference of losses and gradient norms, in fp32 and bf16; the first also of sampled latents."""


def _case(*options: str, steps: int = 4, **more: Any) -> dict[str, Any]:
    return {"options": [*COMMON, f"train.steps={steps}", *options], **more}


MEASURED = ("eval.every=4", "eval.samples=2")
WHOLE = _case("checkpoint.every=3", "checkpoint.keep=0", *MEASURED, steps=6, sample=True)
ALONE = {
    "one process": WHOLE,
    "resumed": {**WHOLE, "resumes": "one process"},
    "recompute full": _case("parallel.recompute=full"),
    "bf16": _case("train.precision=bf16"),
}
IN_TWO = {
    "DP2": _case(*MEASURED, "eval.final_scenes=2"),
    "CP2": _case("parallel.context=2"),
    "PP2 VP2": _case("parallel.pipeline=2", "parallel.virtual_pipeline=2"),
}
IN_FOUR = {"TP2+SP PP2": _case("parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2")}
LAUNCHES = {1: ALONE, 2: IN_TWO, 4: IN_FOUR}
"""Processes -> what they train, one after another (see `npu_worker`)."""
LATER = frozenset({"recompute full", "PP2 VP2"})
"""Left out of short launches."""


class Check(NamedTuple):
    """What was compared, what was found and what may be."""

    name: str
    value: float
    bound: float

    @property
    def good(self) -> bool:
        """Not a number is not."""
        return self.value <= self.bound

    def line(self) -> str:
        """For the screen."""
        return f"{'ok   ' if self.good else 'WRONG'}  {self.name}: {self.value:.1e} (at most {self.bound:g})"


def search_path(*packages: str | Path) -> str:
    """For PYTHONPATH: stand-ins by name, or other folders, and the project."""
    return os.pathsep.join(map(str, [*(PACKAGES / name for name in packages), REPOSITORY]))


def words(platform: str, adaptor: str, processes: int, folder: Path, short: bool = False) -> list[str]:
    """The worker's command line, behind the interpreter or torchrun; what it needs is written into `folder`.  short:
    without `LATER`.
    """
    cases = {name: case for name, case in LAUNCHES[processes].items() if not (short and name in LATER)}
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return [WORKER, platform, adaptor, str(folder / "cases.json"), str(folder)]


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """Alone, or in so many processes."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return [sys.executable, *(launcher if processes > 1 else []), *arguments]


def found_in(folder: Path) -> dict[str, Any]:
    """What the worker left."""
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


def _relative(found: Sequence[float], expected: Sequence[float]) -> float:
    if len(found) != len(expected) or not found:
        return float("inf")
    differences = [abs(a - b) / abs(b) for a, b in zip(found, expected)]
    return float("nan") if any(x != x for x in differences) else max(differences)


def _steps(name: str, found: Any, expected: Any, bound: float) -> Iterator[Check]:
    for what, text in (("losses", "losses"), ("norms", "gradient norms")):
        yield Check(f"{name}: {text} of 4 steps", _relative(found[what][:4], expected[what][:4]), bound)


def checks(processes: int, found: dict[str, Any], expected: dict[str, Any], close: float = CLOSE) -> Iterator[Check]:
    """Of one launch, short or whole, against the CPU platform in one process.  close: instead of `CLOSE`."""
    whole = expected["one process"]
    for name in (name for name in LAUNCHES[processes] if name in found):
        if name == "resumed":
            yield from _resumed(found, whole, close)
        else:
            like = expected["bf16"] if name == "bf16" else whole
            yield from _steps(name, found[name], like, ROUNDED if name == "bf16" else close)
        measured: dict[str, float] = found[name]["validation"]
        if measured:
            same = [whole["validation"][step] for step in measured]
            yield Check(f"{name}: validation", _relative(list(measured.values()), same), close)
    yield from _attention(processes, found)
    yield from _sent(processes, found)


def _attention(processes: int, found: dict[str, Any]) -> Iterator[Check]:
    """Any other backend would agree with the CPU platform, too."""
    yield Check(f"{processes} processes: attention not by npu", float(found["attention"] != ["npu"]), 0)
    few = max(found["rectangles"], default=0) < 3
    yield Check(f"{processes} processes: no row of several rectangles", float(few), 0)


def _resumed(found: dict[str, Any], whole: dict[str, Any], close: float) -> Iterator[Check]:
    first, again = found["one process"], found["resumed"]
    for what in ("losses", "norms"):
        yield Check(f"resumed after 3 of 6 steps: {what}", _relative(again[what], first[what][3:]), close)
    for name, run in (("one process", first), ("resumed", again)):
        worst = max(abs(a - b) for a, b in zip(run["sampled"], whole["sampled"], strict=True))
        yield Check(f"{name}: a sampled clip of {len(run['sampled'])} numbers", worst, close)


def _sent(processes: int, found: dict[str, Any]) -> Iterator[Check]:
    """Only the stand-in keeps what was sent."""
    yield Check(f"{processes} processes: not over HCCL", float(found["backend"] != "hccl"), 0)
    wide = [call for call in found["sent"] if {"float64", "complex128"} & set(call[2].split())]
    yield Check(f"{processes} processes: kinds of collectives in float64", float(len(wide)), 0)
    other = [call for call in found["sent"] if call[0] == "hccl" and "reduce" in call[1]]
    refused = [call for call in other if not set(call[2].split()) <= REDUCED]
    yield Check(f"{processes} processes: reductions that HCCL refuses", float(len(refused)), 0)
