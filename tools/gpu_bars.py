"""The bars of the GPU checks, held against what the parts of `gpu_check.py` measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from tools.measuring.report import BACKWARD, FORWARD

Verdict = tuple[str, str, str]
"""PASS, MISS or NOT MEASURED; the bar; what was found."""


def verdict(bar: str, found: float | None, passes: Callable[[float], bool], text: str = "{:.3g}") -> Verdict:
    """found: None where nothing was measured."""
    if found is None or math.isnan(found):
        return "NOT MEASURED", bar, "no result"
    return "PASS" if passes(found) else "MISS", bar, text.format(found)


def rates(case: dict[str, Any] | None, backend: str) -> tuple[float, float] | None:
    """Forward and backward TFLOP/s on attended pairs, None where the backend did not run."""
    result = (case or {}).get("results", {}).get(backend)
    if case is None or not result or result["note"]:
        return None
    work = case["pairs"] * case["heads"] * case["head_dim"] / 1e12
    return FORWARD * work / result["forward"], BACKWARD * work / result["backward"]


def speed_bars(case: dict[str, Any] | None) -> Iterator[Verdict]:
    """Of attention at 38,478 tokens; a variant with sums in a fixed order is mentioned, the default counts."""
    for backend, least in (("flash", (450, 350)), ("triton", (300, 200))):
        found, fixed = rates(case, backend), rates(case, f"{backend}/fixed")
        for way, name in enumerate(("forward", "backward")):
            text = "{:.0f}" + (f", {fixed[way]:.0f} with gradients in a fixed order" if fixed else "")
            bar = f"{backend} {name} >= {least[way]} TFLOP/s on attended pairs"
            yield verdict(bar, found[way] if found else None, lambda x, most=least[way]: x >= most, text)  # type: ignore[misc]
    results = {
        name: r["forward"] + r["backward"] for name, r in (case or {}).get("results", {}).items() if not r["note"]
    }
    best = min((seconds for name, seconds in results.items() if not name.startswith("sdpa")), default=math.nan)
    yield verdict(
        "attention >= 8 times as fast as dense-mask SDPA",
        results.get("sdpa", math.nan) / best,
        lambda x: x >= 8,
        "{:.1f} times",
    )


def memory_bars(cases: list[dict[str, Any]] | None) -> Iterator[Verdict]:
    """Peak memory from the shortest to the longest row of the same mask, against the growth of the row: O(L) within 10
    %.
    """
    for backend in ("flash", "triton"):
        found: list[float] = []
        for mask in {case["mask"] for case in cases or []}:
            same = sorted(
                (
                    case
                    for case in cases or []
                    if case["mask"] == mask and not (case["results"].get(backend) or {"note": "absent"})["note"]
                ),
                key=lambda c: c["rows"],
            )
            if len(same) > 1:
                growth = same[-1]["results"][backend]["memory"] / max(same[0]["results"][backend]["memory"], 1e-9)
                found.append(growth / (same[-1]["rows"] / same[0]["rows"]))
        yield verdict(
            f"{backend}: peak memory grows with L",
            max(found, default=math.nan),
            lambda x: x <= 1.1,
            "at most {:.2f} times as fast as L",
        )


def step_bars(step: dict[str, Any] | None) -> Iterator[Verdict]:
    """Of the training step: its best backend counts."""
    ran = {name: row for name, row in (step or {}).get("backends", {}).items() if not row["note"]}
    ours = {name: row for name, row in ran.items() if name != "dense"}
    best = max(ours, key=lambda name: ours[name]["mfu"] or 0.0, default="")
    row = ours.get(best)
    facts = f" with {best}, {step['layers']} layers, recompute {step['recompute']}" if step and best else ""
    yield verdict(
        "3.8B stage-4 step: MFU >= 42 % of 989 TFLOP/s",
        row["mfu"] if row else None,
        lambda x: x >= 0.42,
        "{:.1%}" + facts,
    )
    share = row["building"] / statistics.median(row["step"]) if row else None
    yield verdict("tile building <= 2 % of the step", share, lambda x: x <= 0.02, "{:.2%}")
    waits = row["waits"] if row else None
    yield verdict(
        "the host never waits in a step",
        None if waits is None else len(waits),
        lambda x: x == 0,
        "{:.0f} places" + (f": {', '.join(waits)}" if waits else ""),
    )
    if row and "dense" in ran:
        faster = statistics.median(ran["dense"]["step"]) / statistics.median(row["step"])
        yield verdict("a whole step is faster than with a dense mask", faster, lambda x: x > 1, "{:.1f} times")


def correctness_bars(verdicts: dict[str, str] | None) -> Iterator[Verdict]:
    """Of gpu_verify: each backend that the issue names, and the fused layers."""
    for name in ("flash", "triton", "flex", "fused layers"):
        mine = {what: wrong for what, wrong in (verdicts or {}).items() if what.startswith(name)}
        wrong = [f"{what}: {line}" for what, line in mine.items() if line]
        yield verdict(
            f"{name}: agrees with reference",
            len(wrong) if mine else None,
            lambda x: x == 0,
            wrong[0] if wrong else f"{len(mine)} comparisons",
        )


def bars(answer: Callable[[str], Any]) -> list[Verdict]:
    """All verdicts.  answer: the JSON result of a part by its name, None where it left none."""
    attention, sweep = answer("attention"), answer("sweep")
    return [
        *correctness_bars(answer("verify")),
        *speed_bars(attention[0] if attention else None),
        *step_bars(answer("step")),
        *memory_bars(sweep),
    ]
