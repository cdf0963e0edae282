"""What is sampled and what it takes, as a table, for benchmark_sampling.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The model and its frames.  grid: patch rows and columns."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A rollout of one video: given frames, then clips."""

    history: int
    clips: tuple[int, ...]
    steps: int
    guidance: float

    def __str__(self) -> str:
        return f"{self.history} + {', '.join(map(str, self.clips))}"


@dataclass
class Taken:
    """Seconds by the clock and of the CPU; of them for the history, and for a step."""

    wall: float
    cpu: float
    remember: float
    step: float


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    ways = ("seconds", "CPU seconds", "ms a step", "peak MiB")
    columns = [
        "frames given + clips",
        *(f"{way}: without, with" for way in ways),
        "with: history ms",
        "ratio",
        "of CPU seconds",
        "difference",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in results:
        old, new = row["uncached"], row["cached"]
        pairs = [f"{old[key]:.2f}, {new[key]:.2f}" for key in ("wall", "cpu")] + [
            f"{1e3 * old['step']:.0f}, {1e3 * new['step']:.0f}"
        ]
        pairs += [f"{row['peak']['uncached']:.0f}, {row['peak']['cached']:.0f}", f"{1e3 * new['remember']:.0f}"]
        ratios = f"**{row['wall_ratio']:.2f}** | {row['cpu_ratio']:.2f} | {row['error']:.0e}"
        lines.append(f"| {row['history']} + {', '.join(map(str, row['clips']))} | {' | '.join(pairs)} | {ratios} |")
    return "\n".join(lines) + "\n"
