"""A checkpoint of any layout loads in any other, value for value, and training goes on with the same losses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.layouts.cases import Case, case

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "reshard_worker.py")


def bf16(of: Case) -> Case:
    return dataclasses.replace(of, precision="bf16")


def small(layout: str, *extra: str) -> Case:
    """Of four layers, two samples a row."""
    return case(layout, "ema=0.9", "micro=2", *extra, model="2 kv heads")


TP2, PP2_VP2, CP2, DP2 = small("TP2+SP"), small("PP2 VP2", "small buckets"), small("CP2"), small("DP2")
FAST = [(TP2, PP2_VP2), (PP2_VP2, CP2), (CP2, DP2), (DP2, TP2)]
"""Pairs (saved in, loaded in) of two processes: one launch."""
LONG = [
    (bf16(PP2_VP2), bf16(TP2)),
    (bf16(TP2), bf16(DP2)),
    (case("P1", "ema=0.9"), case("TP4", "ema=0.9")),
    (case("CP4", "ema=0.9"), case("PP4 VP2", "ema=0.9")),
    (case("PP4", "pipeline_layers=[1,2,3,2]", "ema=0.9"), case("TP2+SP CP2", "ema=0.9")),
    (case("TP2 CP2", model="2 kv heads"), case("TP4", model="2 kv heads")),
    (bf16(case("TP2+SP CP2 PP2", "ema=0.9")), bf16(case("DP2 PP2 VP2", "ema=0.9"))),
]


def tasks_of(
    pairs: list[tuple[Case, Case]], folder: Path
) -> tuple[dict[Case, dict[str, Any]], list[tuple[Path, Path]]]:
    """Tasks that save, by layout (each once), and the run folders (saved, loaded and saved again) of each pair."""
    saving = {
        first: {"options": first.all_options, "output": str(folder / first.key), "load": None} for first, _ in pairs
    }
    return saving, [
        (folder / first.key, folder / f"{number}_{second.key}") for number, (first, second) in enumerate(pairs)
    ]


def run_pairs(pairs: list[tuple[Case, Case]], folder: Path) -> list[tuple[tuple[Path, Path], dict[str, Any]]]:
    """Save, load and save again; returns the two run folders of every pair with what `reshard_worker.compare` found."""
    saving, folders = tasks_of(pairs, folder)
    tasks = [(layout.processes, task) for layout, task in saving.items()]
    loading = [
        (second.processes, {"options": second.all_options, "output": str(b), "load": str(a)})
        for (_, second), (a, b) in zip(pairs, folders, strict=True)
    ]
    # One launch may save and load again where all of its process count.
    together = len({processes for processes, _ in [*tasks, *loading]}) == 1
    for number, stage in enumerate([tasks + loading] if together else [tasks, loading]):
        for processes in sorted({processes for processes, _ in stage}):
            asked = folder / f"{number}_{processes}.json"
            asked.write_text(json.dumps([task for wanted, task in stage if wanted == processes]))
            torchrun(processes, WORKER, "run", str(asked), timeout=600)
    asked, answered = folder / "pairs.json", folder / "compared.json"
    asked.write_text(json.dumps([(str(a), str(b)) for a, b in folders]))
    torchrun(1, WORKER, "compare", str(asked), str(answered))
    return list(zip(folders, json.loads(answered.read_text()), strict=True))


def check(pair: tuple[Case, Case], folders: tuple[Path, Path], found: dict[str, Any]) -> None:
    """Equal tensors, all of them there and none of them trivial; equal states; equal losses afterwards."""
    assert found["only in one"] == [] and found["unequal"] == []
    kinds = found["kinds"]
    averaged = any(option.startswith("optimizer.ema") for option in pair[0].options)
    # A checkpoint without any moments would be equal to another without any.
    assert kinds["weight"] >= 24
    assert (
        kinds["exp_avg"] == kinds["exp_avg_sq"] == kinds["param"] == kinds["weight"]
        and kinds.get("ema", 0) == averaged * kinds["weight"]
    )
    assert found["zero"] == []
    wide, narrow = ["torch.float32"], ["torch.bfloat16" if pair[0].precision == "bf16" else "torch.float32"]
    assert all(found["dtypes"][name] == (narrow if name == "weight" else wide) for name in kinds)

    states = [json.loads(next((folder / "checkpoints").glob("step_*/state.json")).read_text()) for folder in folders]
    assert states[0] == states[1]
    assert (states[0]["step"], states[0]["consumed"], states[0]["updates"], states[0]["seed"]) == (3, 24, 3, 7)
    assert states[0]["ema"] == averaged and states[0]["pending"][3] == 1.5 and states[0]["norms"] == [3.25, 1.5, 2.0]

    straight, resumed = (json.loads((folder / "losses.json").read_text()) for folder in folders)
    assert len(straight) == len(resumed) == 3
    assert resumed == pytest.approx(straight, rel=1e-5 if pair[0].precision == "fp32" else 5e-3)


def names(pair: tuple[Case, Case]) -> str:
    return f"{pair[0].precision} {pair[0].name} to {pair[1].name}"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[tuple[Path, Path], dict[str, Any]]]:
    return run_pairs(FAST, tmp_path_factory.mktemp("reshard"))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[tuple[Path, Path], dict[str, Any]]]:
    return run_pairs(LONG, tmp_path_factory.mktemp("reshard_long"))


@pytest.mark.parametrize("number", range(len(FAST)), ids=[names(pair) for pair in FAST])
def test_two_processes(number: int, fast: list[tuple[tuple[Path, Path], dict[str, Any]]]) -> None:
    check(FAST[number], *fast[number])


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(LONG)), ids=[names(pair) for pair in LONG])
def test_one_to_eight_processes(number: int, long: list[tuple[tuple[Path, Path], dict[str, Any]]]) -> None:
    check(LONG[number], *long[number])
