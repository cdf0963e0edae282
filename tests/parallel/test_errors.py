"""Bad input: one clear line and a non-zero exit, and what was saved before stays (each as a user would meet it, through
the command line).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

from .launch import REPOSITORY, cli, torchrun
from .test_resume import newest

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
VIDEOS = (
    "data.source=videos",
    "data.max_aspect=2",
    "data.longest_side=32",
    "data.min_side=32",
    "data.frame_interval=[1,2]",
    "train.steps=2",
)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one `error:` line of a failed command; nothing of a traceback beside it."""
    assert result.returncode not in (0, None), result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def moving_square(path: Path, frames: int, side: int = 64) -> None:
    """A small real video."""
    from megatron_videogpt.data.video.pictures import write_video

    pictures = np.full((frames, side, side, 3), 200, np.uint8)
    for n, picture in enumerate(pictures):
        picture[side // 4 : side // 2, n % (side // 2) : n % (side // 2) + side // 4] = (220, 40, 30)
    write_video(path, pictures, 12)


def test_wrong_option() -> None:
    line = error_of(cli("train", CONFIG, "optimizer.warmup_step=1"))
    assert "optimizer.warmup_step = 1" in line and "did you mean" in line and "warmup_steps" in line


def test_missing_folder(tmp_path: Path) -> None:
    line = error_of(cli("train", CONFIG, *VIDEOS, "data.path=/no/such/folder", f"train.output={tmp_path}"))
    assert 'data.path = "/no/such/folder"' in line


def test_tensor_parallelism_that_does_not_divide_the_heads(tmp_path: Path) -> None:
    result = torchrun(
        3, "-m", "megatron_videogpt", "train", CONFIG, f"train.output={tmp_path}", "parallel.tensor=3", check=False
    )
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert any("parallel.tensor" in line and "num_attention_heads" in line for line in lines), result.stderr
    assert not list(tmp_path.iterdir()), "nothing may be written by a run that cannot start"


def test_bad_videos_are_named_and_skipped_and_training_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for n in range(3):
        moving_square(folder / f"good_{n}.mp4", 24)
    whole = (folder / "good_0.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    moving_square(folder / "short.mp4", 2)
    moving_square(folder / "dot.mp4", 24, side=2)
    result = cli("train", CONFIG, *VIDEOS, f"data.path={folder}", f"train.output={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    told = result.stdout + result.stderr
    for name in ("truncated.mp4", "empty.mp4", "text.mp4", "short.mp4", "dot.mp4"):
        assert told.count(name) == 1, (name, told)
    assert "5 of 8" in told
    (folder / "good_0.mp4").unlink(), (folder / "good_1.mp4").unlink(), (folder / "good_2.mp4").unlink()
    line = error_of(cli("train", CONFIG, *VIDEOS, f"data.path={folder}", f"train.output={tmp_path / 'none'}"))
    assert "none of 5 videos" in line


def written(run: Path) -> dict[Path, int]:
    """When each file of a run was written; the logs and the lock, which tell of refused starts too, are left out."""
    return {
        path: path.stat().st_mtime_ns
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.parent.name != "logs" and path.name != ".train.lock"
    }


def test_checkpoint_of_another_shape_is_refused_and_left_alone(finished: Path) -> None:
    before = written(finished)
    line = error_of(cli("train", CONFIG, f"train.output={finished}", "train.steps=16", "model.hidden_size=64"))
    assert "hidden_size is 32 there and 64 here" in line
    assert before == written(finished)


def test_a_checkpoint_of_another_codec_is_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = run / "checkpoints" / newest(run) / "state.json"
    state.write_text(state.read_text().replace('"codec": "', '"codec": "0000'))
    (state.parent / "files.json").unlink()
    for command in (
        ("train", CONFIG, f"train.output={run}", "train.steps=16"),
        ("sample", "--checkpoint", str(run), "--scene", "fall/1", "--output", str(run / "out.mp4")),
    ):
        line = error_of(cli(*command))
        assert "another tiny codec" in line and "fingerprint 0000" in line


def test_another_seed_is_refused(finished: Path) -> None:
    line = error_of(cli("train", CONFIG, f"train.output={finished}", "train.steps=16", "train.seed=3"))
    assert "train.seed = 3" in line and "seed 0" in line and "train.init_from" in line


def test_more_recomputation_than_there_is(tmp_path: Path) -> None:
    line = error_of(
        cli("train", CONFIG, f"train.output={tmp_path / 'run'}", "parallel.recompute=auto", "parallel.memory_gb=0.0001")
    )
    assert "parallel.recompute = auto" in line and "parallel.tensor" in line


def test_sampling_without_a_checkpoint(tmp_path: Path) -> None:
    moving_square(tmp_path / "in.mp4", 8)
    line = error_of(
        cli(
            "sample",
            "--checkpoint",
            str(tmp_path),
            "--video",
            str(tmp_path / "in.mp4"),
            "--output",
            str(tmp_path / "out.mp4"),
        )
    )
    assert "checkpoint" in line and str(tmp_path) in line


def test_full_disk_at_save(finished: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    run.mkdir()
    (run / "checkpoints").mkdir()
    kept = "step_00000004"
    shutil.copytree(finished / "checkpoints" / kept, run / "checkpoints" / kept)
    contents = {path.name: path.read_bytes() for path in (run / "checkpoints" / kept).iterdir()}
    # What is left holds the small files of a run, not another checkpoint.
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * max(0, free - 100_000))
    line = error_of(cli("train", CONFIG, f"train.output={run}", "train.steps=6"))
    assert "step 6 could not be saved" in line and "space" in line and kept in line
    assert contents == {path.name: path.read_bytes() for path in (run / "checkpoints" / kept).iterdir()}
    assert [path.name for path in (run / "checkpoints").glob("*.partial")] == []
    (small_disk / "filler").unlink()
    result = cli("train", CONFIG, f"train.output={run}", "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert f"resumed from {run / 'checkpoints' / kept}" in result.stdout
