"""What measurements are told with: the command, the machine, progress, tables; tables and plots of attention."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def numbers(text: str) -> tuple[int, ...]:
    """ "8192,16384" -> (8192, 16384)."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """ "stage1,causal" -> ("stage1", "causal")."""
    return tuple(text.split(","))


def machine(device: str, threads: int) -> str:
    """The machine and torch's version."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    if device == "npu":
        import torch_npu

        return f"{torch.npu.get_device_name()}, torch {torch.__version__}, torch_npu {torch_npu.__version__}"
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return f"{cpu}, {threads} thread(s), torch {torch.__version__}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def command() -> str:
    """The command that was given, as Markdown."""
    return f"`{' '.join(['python', f'tools/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`"


def heading(device: str, threads: int) -> str:
    """What every report begins with: the command and the machine."""
    return f"{command()}\n\n{machine(device, threads)}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def progress(transient: bool = False) -> Progress:
    """A bar on stderr, so that stdout is the report alone.  transient: it goes when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=transient)


FORWARD, BACKWARD = 4, 10
"""FLOPs per pair and channel: two products forward; five backward, of which one computes the scores again."""


@dataclass
class Result:
    """One backend on one mask.  forward, backward, building: seconds (building: of tile lists or plan, once per row);
    memory: peak extra MiB; note: why there are no numbers.
    """

    forward: float = math.nan
    backward: float = math.nan
    building: float = math.nan
    memory: float = math.nan
    note: str = ""

    @property
    def both(self) -> float:
        """Seconds of forward and backward."""
        return self.forward + self.backward


@dataclass
class Case:
    """One mask and shape with its results.  rows: tokens with padding; pairs: that attend, padding left out."""

    mask: str
    rows: int
    tokens: int
    pairs: int
    heads: int
    kv_heads: int
    head_dim: int
    description: str
    results: dict[str, Result] = field(default_factory=dict)

    def tflops(self, name: str) -> tuple[float, float]:
        """TFLOP/s of a backend's forward and backward on attended pairs; `sdpa-full` attends all pairs."""
        pairs = self.rows**2 if name == "sdpa-full" else self.pairs
        work, result = pairs * self.heads * self.head_dim / 1e12, self.results[name]
        return FORWARD * work / result.forward, BACKWARD * work / result.backward


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _rate(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.3f}"


def case_table(case: Case) -> str:
    """All backends on one mask, ratios against the first that ran."""
    heads = f"{case.heads} heads" + (f" ({case.kv_heads} key-value)" if case.kv_heads != case.heads else "")
    lines = [
        f"{case.description}; {heads} of {case.head_dim}\n",
        "| backend | forward ms | TFLOP/s | backward ms | TFLOP/s | both ms | speed | peak extra MiB | tile lists ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = next((result.both for result in case.results.values() if not result.note), math.nan)
    for name, result in case.results.items():
        if result.note:
            lines.append(f"| {name} | not run: {result.note} | | | | | | | |")
            continue
        forward, backward = case.tflops(name)
        times = (
            f"{1e3 * result.forward:.2f} | {_rate(forward)} | {1e3 * result.backward:.2f} | {_rate(backward)} | "
            f"{1e3 * result.both:.2f}"
        )
        lines.append(
            f"| {name} | {times} | {base / result.both:.2f}x | {_number(result.memory, 0)} | "
            f"{_number(1e3 * result.building, 2)} |"
        )
    if case.results.get("sdpa", Result(note="absent")).note == "":
        lines.append(f"\nsdpa's mask of {case.rows**2 / 2**20:,.0f} MiB, built beforehand, comes on top of its peak.")
    return "\n".join(lines) + "\n"


def summary_tables(cases: list[Case]) -> str:
    """TFLOP/s forward / backward of every backend, one table for each head dimension."""
    names = list(cases[0].results)
    parts = []
    for head_dim in sorted({case.head_dim for case in cases}):
        parts.append(f"\nTFLOP/s on attended pairs, forward / backward; {cases[0].heads} heads of {head_dim}\n")
        parts.append(f"| mask | tokens | density | {' | '.join(names)} |\n|{'---|' * (3 + len(names))}")
        for case in cases:
            if case.head_dim == head_dim:
                cells = ["" if case.results[name].note else " / ".join(map(_rate, case.tflops(name))) for name in names]
                parts.append(
                    f"| {case.mask} | {case.tokens:,} | {case.pairs / case.tokens**2:.3f} | {' | '.join(cells)} |"
                )
    return "\n".join(parts) + "\n"


def plot(path: Path, cases: list[Case], title: str) -> None:
    """Bars of forward and backward TFLOP/s on attended pairs, by mask and backend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in cases[0].results if any(not case.results[name].note for case in cases)]
    figure, panels = plt.subplots(2, 1, figsize=(max(6.0, 1.2 * len(cases) * max(1, len(names) / 3)), 7), sharex=True)
    for way, (panel, label) in enumerate(zip(panels, ("forward", "backward"))):
        for place, name in enumerate(names):
            heights = [0.0 if case.results[name].note else case.tflops(name)[way] for case in cases]
            panel.bar(
                [x + (place - (len(names) - 1) / 2) * 0.8 / len(names) for x in range(len(cases))],
                heights,
                0.8 / len(names),
                label=name,
            )
        panel.set_ylabel(f"{label}, TFLOP/s on attended pairs")
        panel.grid(axis="y", alpha=0.3)
    panels[1].set_xticks(
        range(len(cases)), [f"{case.mask}\n{case.tokens / 1024:.0f}K x {case.head_dim}" for case in cases], fontsize=8
    )
    panels[0].legend(ncols=len(names), fontsize=8)
    panels[0].set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
