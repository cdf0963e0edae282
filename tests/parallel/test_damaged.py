"""The newest checkpoint of a run is damaged: one line and nothing else, or on from the one before as if the newest had
never been.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from .launch import REPOSITORY, cli, run, torchrun
from .test_errors import error_of
from .test_resume import losses

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")


def copied(finished: Path, tmp_path: Path, record: bool = True) -> tuple[Path, Path]:
    """A run to damage and its newest checkpoint; without records as an earlier release left it."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    for path in () if record else (output / "checkpoints").glob("*/files.json"):
        path.unlink()
    return output, output / "checkpoints" / "step_00000014"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_stops_with_one_line(finished: Path, tmp_path: Path) -> None:
    output, newest = copied(finished, tmp_path)
    cut(newest / "__0_1.distcp", 3_000)
    before = bytes_of(newest)
    result = cli("train", CONFIG, f"train.output={output}", "train.steps=16")
    line = error_of(result)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{newest}: is damaged (__0_1.distcp has 3,000 bytes, expected" in line
    assert "the newest whole one is step_00000012; checkpoint.on_damaged=previous goes on from it" in line
    # Whoever samples has no such option.
    line = error_of(
        cli("sample", "--checkpoint", str(output), "--scene", "fall/1", "--output", str(tmp_path / "a.mp4"))
    )
    assert f"{newest}: is damaged" in line and "--step 12 takes it" in line
    line = error_of(cli("train", CONFIG, f"train.output={tmp_path / 'b'}", f"train.init_from={output}"))
    assert f"{newest}: is damaged" in line and "checkpoint.on_damaged=previous" in line
    assert bytes_of(newest) == before


def test_it_goes_on_from_the_one_before_and_keeps_the_damaged_one(finished: Path, tmp_path: Path) -> None:
    """And says so, once; later starts see a run like any other."""
    output, newest = copied(finished, tmp_path)
    cut(newest / "state.json", 20)
    cut(newest.with_name("step_00000012") / ".metadata", 0)
    before = bytes_of(newest)
    shutil.rmtree(newest.with_name("step_00000004"))
    options = (CONFIG, f"train.output={output}", "checkpoint.keep=1")
    asked = [str(REPOSITORY / "tools" / "run_state.py"), *options]
    result = cli("train", *options, "checkpoint.on_damaged=previous")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is damaged") == 1 and "WARNING" in result.stderr
    assert "and so is step_00000012; the newest whole one is step_00000008; going on from that" in result.stderr
    assert "resumed from" in result.stdout and "step_00000014 is kept as step_00000014.damaged" in result.stdout
    assert losses(output) == losses(finished)
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step_00000012.damaged", "step_00000014", "step_00000014.damaged"]
    assert bytes_of(newest.with_name("step_00000014.damaged")) == before
    told = run([sys.executable, *asked])
    assert told.stdout == "finished at step 14\n", told.stderr


@pytest.mark.parametrize(
    ("ranks", "name", "size"),
    [(2, "__0_0.distcp", 200_000), (2, "common.pt", 900), (1, ".metadata", 30_000), (1, "metadata.json", 20)],
)
def test_what_no_record_tells_of_is_told_when_it_is_read(
    ranks: int, name: str, size: int, finished: Path, tmp_path: Path
) -> None:
    output, newest = copied(finished, tmp_path, record=False)
    cut(newest / name, size)
    command = ("train", CONFIG, f"train.output={output}")
    result = torchrun(2, "-m", "megatron_videogpt", *command, check=False) if ranks > 1 else cli(*command)
    assert result.returncode != 0
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
    assert f"{newest}: cannot be read (" in line and "the newest whole one is step_00000012; move step_00000014" in line
    # What follows is the launcher's own.
    assert "Traceback" not in result.stderr.partition("error:")[0]


def test_a_checkpoint_of_an_earlier_release_resumes(finished: Path, tmp_path: Path) -> None:
    output, newest = copied(finished, tmp_path, record=False)
    shutil.rmtree(newest)
    result = cli("train", CONFIG, f"train.output={output}")
    assert result.returncode == 0 and "step_00000012" in result.stdout, result.stderr
    assert losses(output) == losses(finished)
