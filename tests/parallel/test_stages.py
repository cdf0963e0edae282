"""The whole chain of stages in miniature, by the very script that runs the paper's: weights are handed on, nothing
else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from .launch import REPOSITORY
from .test_resume import CONFIG, losses

SCRIPT = str(REPOSITORY / "examples" / "videogpt" / "pretrain_all_stages.sh")
STEPS = {1: 12, 2: 3, 3: 4, 4: 2}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny stages that differ in frames, clips and learning rate, as the paper's do."""
    folder = tmp_path_factory.mktemp("stages")
    for number, (frames, clips, rate) in enumerate(
        ((4, "[4, 4]", 3e-3), (6, "[2, 6]", 3e-3), (6, "[2, 6]", 1e-30), (8, "[2, 8]", 1e-3)), start=1
    ):
        text = (
            f'base = "{CONFIG}"\n[data]\nframes = {frames}\nclips = {clips}\n[optimizer]\nlr = {rate}\nmin_lr = '
            f"0.0\n[train]\nsteps = {STEPS[number]}\n"
        )
        (folder / f"stage{number}.toml").write_text(text)
    return folder


def start(stages: Path, runs: Path, *overrides: str) -> subprocess.Popen[str]:
    command = ["bash", SCRIPT, "--stages", str(stages), "--runs", str(runs), "--nproc-per-node", "1", *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
    return output


def saved(runs: Path, number: int) -> Path:
    return runs / f"stage{number}" / "checkpoints" / f"step_{STEPS[number]:08d}"


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's model, read without the trainer."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = FileSystemReader(str(path)).read_metadata().state_dict_metadata
    names = [
        name
        for name, about in metadata.items()
        if isinstance(about, TensorStorageMetadata) and not name.startswith(("optimizer", "average"))
    ]
    tensors = {name: torch.empty(metadata[name].size, dtype=metadata[name].properties.dtype) for name in names}  # type: ignore[union-attr]
    load(tensors, storage_reader=FileSystemReader(str(path)), no_dist=True)
    return tensors


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest difference of any value of two checkpoints with the same tensors."""
    assert first.keys() == second.keys()
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


@pytest.mark.long
def test_an_interrupted_chain_hands_on_weights_only(stages: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # Interrupted in stage 1 as Slurm would, then given again.
    process = start(stages, runs)
    deadline = time.monotonic() + 400
    while not ((runs / "stage1" / "metrics.jsonl").exists() and losses(runs / "stage1")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    output = finish(process)
    assert "stopped as asked in stage 1 of 4" in output and not (runs / "stage2").exists()

    output = finish(start(stages, runs))
    assert f"all four stages are done: {runs}/stage4" in output
    for number, steps in STEPS.items():
        run = runs / f"stage{number}"
        assert sorted(losses(run)) == list(range(1, steps + 1))
        state = json.loads((saved(runs, number) / "state.json").read_text())
        assert (state["step"], state["updates"], state["consumed"]) == (steps, steps, 4 * steps), (
            "each stage counts from the start"
        )
        if number > 1:
            assert f"weights from {saved(runs, number - 1)}" in output
    # Stage 3 learns nothing (rate 1e-30): what it saves is what it started from.
    second, third = weights(saved(runs, 2)), weights(saved(runs, 3))
    assert len(second) > 10
    assert distance(second, third) < 1e-20
    assert distance(weights(saved(runs, 1)), second) > 1e-4 and distance(weights(saved(runs, 4)), third) > 1e-4

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    finish(start(stages, runs))
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}, "a finished chain does nothing"


def test_a_stage_that_fails_ends_the_chain(stages: Path, tmp_path: Path) -> None:
    process = start(
        stages,
        tmp_path / "runs",
        "data.source=videos",
        "data.path=/no/such/folder",
        "data.max_aspect=1",
        "data.longest_side=32",
    )
    _, errors = process.communicate(timeout=400)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert "/no/such/folder" in lines[0] and "stage 1 of 4" in lines[-1]
    assert not (tmp_path / "runs" / "stage2").exists()
