"""A ladder of tiny runs, launched, killed with its launcher in the middle, and finished by the same command."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_videogpt.checkpoint.folders import complete_folders, step_of

from .launch import REPOSITORY, cli, interpreter, kill_tree, start
from .test_decays import lines_of

LADDER = """
base = "{tiny}"

[ladder]
output = "{output}"
sizes = [1e4, 4e4]
multiples = [1, 2]
schedule = "wsd_s"
tokens_per_parameter = 0.05
reference_size = 1e4
parameters = "decoder"
aspect = 16
lr = 3e-3
batch_tokens = 150
batch_multiple = 2
memory_gb = 1
gpus = 2
gpus_per_run = 1

[eval]
samples = 2
"""


def written(folder: Path, name: str) -> tuple[Path, Path]:
    """A ladder's file, and its folder."""
    path, output = folder / f"{name}.toml", folder / name
    text = LADDER.format(tiny=REPOSITORY / "tests" / "parallel" / "tiny.toml", output=output)
    path.write_text(text, encoding="utf-8")
    return path, output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ladder of two runs with two points each, undisturbed: its file, and its folder."""
    path, output = written(tmp_path_factory.mktemp("undisturbed"), "whole")
    done = cli("scaling", "run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return path, output


def planned(output: Path) -> list[dict[str, Any]]:
    return list(json.loads((output / "ladder.json").read_text(encoding="utf-8"))["runs"])


def trained_steps(run: Path) -> list[int]:
    """Steps of which metrics.jsonl has a loss, in its order."""
    return [line["step"] for line in lines_of(run) if "loss" in line]


def test_a_ladder_is_launched_once(whole: tuple[Path, Path]) -> None:
    """A second call trains nothing, and the points are there to be fitted."""
    path, output = whole
    runs = planned(output)
    assert [run["name"] for run in runs] == ["10k", "40k"]
    for run in runs:
        folder = output / run["name"]
        assert trained_steps(folder) == list(range(1, run["steps"] + 1))
        validated = {line["step"] for line in lines_of(folder) if "validation_loss" in line}
        assert {0, *run["points"]} <= validated
        assert set(run["points"]) <= {step_of(one) for one in complete_folders(folder)}
    before = {one: one.stat().st_mtime_ns for one in output.rglob("metrics.jsonl")}
    again = cli("scaling", "run", str(path))
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert {one: one.stat().st_mtime_ns for one in output.rglob("metrics.jsonl")} == before


@pytest.mark.long
def test_a_killed_launcher_and_run_leave_no_trace_in_the_results(whole: tuple[Path, Path], tmp_path: Path) -> None:
    steps = {run["name"]: run["steps"] for run in planned(whole[1])}
    names = list(steps)
    path, output = written(tmp_path, "again")
    living = start(interpreter("-m", "megatron_videogpt", "scaling", "run", str(path), "--at-once", "1"))
    last = names[-1]
    try:
        # The largest run is on its way and has a checkpoint; the others are over.
        deadline = time.monotonic() + 1000
        while not complete_folders(output / last):
            assert living.poll() is None and time.monotonic() < deadline, living.communicate()
            time.sleep(0.02)
        assert step_of(complete_folders(output / last)[-1]) < steps[last]
        children = [one.pid for one in psutil.Process(living.pid).children(recursive=True)]
        holder = int((output / last / ".train.lock").read_text(encoding="utf-8").split()[1])
    finally:
        kill_tree(living)
        living.communicate(timeout=100)
    for pid in {*children, holder}:
        if psutil.pid_exists(pid):
            os.kill(pid, 9)
    begun = {name: (output / name / "metrics.jsonl").is_file() for name in names}
    finished = [name for name in names if begun[name] and max(trained_steps(output / name)) == steps[name]]
    logs = {name: (output / name / "logs" / "rank_00000.log").read_text(encoding="utf-8") for name in finished}
    result = cli("scaling", "run", str(path), timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("finished before") == len(finished) and f"{last}: started from step " in result.stdout
    # Nothing of a finished run was touched: no process has started there.
    for name, text in logs.items():
        assert (output / name / "logs" / "rank_00000.log").read_text(encoding="utf-8") == text
    for name in names:
        assert lines_of(output / name) == lines_of(whole[1] / name)
        assert trained_steps(output / name) == list(range(1, steps[name] + 1))
    status = cli("scaling", "status", str(output), "--json")
    assert [one["state"] for one in json.loads(status.stdout)] == ["finished"] * len(names)
