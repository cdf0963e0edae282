"""Which checkpoints a run keeps, resumes from and averages into."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .launch import REPOSITORY, cli, run
from .test_resume import losses, train

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
DECAY = 0.75

EXPORT = """
import sys
from pathlib import Path
from megatron_videogpt.platforms import activate
platform = activate("cpu")
from megatron_videogpt.config.schema import ParallelConfig
from megatron_videogpt.convert.export import Export
from megatron_videogpt.convert.write import write_folder
from megatron_videogpt.platforms import world
world.start(platform, ParallelConfig())
for step in map(int, sys.argv[2].split(",")):
    for kind in ("trained", "average"):
        export = Export(Path(sys.argv[1]), step, kind == "average")
        write_folder(export, Path(sys.argv[3]) / f"{kind}_{step}", 10**9, None, None, None, lambda count: None)
world.stop()
"""


def folders(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def exported(output: Path, steps: tuple[int, ...], folder: Path) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """Weights and averages of checkpoints, exported by one process."""
    folder.mkdir()
    result = run([sys.executable, "-c", EXPORT, str(output), ",".join(map(str, steps)), str(folder)])
    assert result.returncode == 0, result.stderr
    return {
        (kind, step): load_file(folder / f"{kind}_{step}" / "model.safetensors")
        for kind in ("trained", "average")
        for step in steps
    }


@pytest.fixture(scope="module")
def in_background(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that saved in the background."""
    output = tmp_path_factory.mktemp("background") / "run"
    train(2, output, "checkpoint.async_save=true", "checkpoint.every=2", "checkpoint.keep=2", "checkpoint.keep_every=6")
    return output


def test_the_newest_and_the_marked_checkpoints_are_kept(in_background: Path) -> None:
    assert folders(in_background) == ["step_00000006", "step_00000012", "step_00000014"]


def test_resuming_from_the_newest_complete_checkpoint(in_background: Path, tmp_path: Path) -> None:
    whole, output = losses(in_background), tmp_path / "run"
    shutil.copytree(in_background, output)
    shutil.rmtree(output / "checkpoints" / "step_00000014")
    # What a crash leaves: a save that was under way, and a folder whose last files were never written.
    (output / "checkpoints" / "step_00000012").rename(output / "checkpoints" / "step_00000012.partial")
    shutil.copytree(
        output / "checkpoints" / "step_00000006",
        output / "checkpoints" / "step_00000008",
        ignore=shutil.ignore_patterns("state.json", "files.json"),
    )
    again = train(1, output, "checkpoint.every=0", "parallel.pipeline=1")
    assert again == pytest.approx(whole, rel=1e-5)
    state = json.loads((output / "checkpoints" / "step_00000014" / "state.json").read_text())
    assert (state["step"], state["consumed"], state["updates"]) == (14, 56, 14)


@pytest.mark.long
def test_averages_follow_their_recursion_and_survive_a_change_of_layout(tmp_path: Path) -> None:
    output, options = (
        tmp_path / "run",
        (
            "train.steps=5",
            "checkpoint.every=1",
            "checkpoint.keep=0",
            f"optimizer.ema_decay={DECAY}",
            "optimizer.schedule=constant",
        ),
    )
    train(2, output, *options, "parallel.bucket_size=5000")
    found = exported(output, (1, 2, 3, 4, 5), tmp_path / "exported")
    for step in (2, 3, 4, 5):
        for name, average in found["average", step].items():
            expected = (
                DECAY * found["average", step - 1][name].double() + (1 - DECAY) * found["trained", step][name].double()
            )
            torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(found["average", 5][name], value) for name, value in found["trained", 5].items())
    for step in (3, 4, 5):
        shutil.rmtree(output / "checkpoints" / f"step_{step:08d}")
    train(2, output, *options, "parallel.pipeline=2")
    resumed = exported(output, (5,), tmp_path / "resumed")
    for name, average in resumed["average", 5].items():
        torch.testing.assert_close(average, found["average", 5][name], rtol=1e-5, atol=1e-7)


def test_sampling_asks_for_an_average_that_is_there(in_background: Path, tmp_path: Path) -> None:
    result = cli(
        "sample",
        "--checkpoint",
        str(in_background),
        "--scene",
        "fall/1",
        "--output",
        str(tmp_path / "out.mp4"),
        "--weights",
        "average",
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert (
        result.returncode == 2
        and len(lines) == 1
        and "no moving average" in lines[0]
        and "optimizer.ema_decay" in lines[0]
    )
