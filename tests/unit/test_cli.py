"""The command line: help, exit codes, one line per problem."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.config.load import ConfigError, load_config
from megatron_videogpt.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "videogpt" / "quickstart.toml")


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["check", "--help"], ["options", "--help"]])
def test_help_teaches_and_exits_cleanly(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 0
    assert "TOML" in capsys.readouterr().out.upper()


def test_help_and_a_wrong_file_do_not_load_pytorch() -> None:
    code = "import sys; from megatron_videogpt.__main__ import main; main(['options']); main(['train', 'none.toml']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_options_prints_a_file_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options"]) == 0
    path = tmp_path / "all.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(path) == Config()


def test_check_prints_parameters_layout_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_videogpt.config.estimate import component_parameters, geometry

    assert cli.main(["check", QUICKSTART, "--gpus", "4", "train.global_batch_size=16", "model.num_layers=2"]) == 0
    out = capsys.readouterr().out
    config = load_config(QUICKSTART, ["model.num_layers=2"])
    total = sum(component_parameters(config.model, geometry(config.codec).channels).values())
    for expected in (f"{total:,}", "decoder.layers x 2", "TP 2 x PP 1 x DP 2 = 4", "activations", "model FLOPs per step"):
        assert expected in out


def test_check_notes_folders_that_are_not_there_yet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", str(ROOT / "examples/videogpt/stage2.toml"), "--gpus", "320"]) == 0
    out = capsys.readouterr().out
    assert "3,663,581,200" in out
    assert all(f"note, before training: {name} = " in out for name in ("train.init_from", "data.path", "codec.path"))


def test_train_stops_on_missing_folders_before_anything_starts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["train", QUICKSTART, "parallel.tensor=1", "parallel.sequence=false", "data.source=videos", "data.path=gone"]) == 2
    err = capsys.readouterr().err
    assert err == 'error: data.path = "gone": there is no such folder; give a folder with video files\n'
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_one_error_line_and_only_rank_0_prints_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["train", QUICKSTART, "model.hidden_size=250", "train.steps=none", "data.fames=3"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == ["error: data.fames", "error: train.steps", "error: model.hidden_size"]
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert cli.main(argv) == 2
    assert waited == [cli.SILENT_RANK_SECONDS]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("frames = 3: too few;\n  use more"), "error: frames = 3: too few; use more"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.mp4"), "error: [Errno 2] No such file or directory: 'x.mp4'"),
    ],
)
def test_user_errors_are_one_line_without_traceback(error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> None:
        raise error

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "options", fail)
    assert cli.main(["options"]) == 2
    assert capsys.readouterr().err.splitlines() == [line]
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["options"]) == 2
    assert capsys.readouterr().err.splitlines() == [line.replace("error:", "error (rank 3):")]
    with pytest.raises(type(error)):
        cli.main(["options", "--traceback"])


def test_a_bad_video_is_a_user_error_and_a_bug_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.data.decode import BadVideo

    assert cli.is_user_error(BadVideo("x.mp4", "empty"))
    assert cli.is_user_error(ConfigError(["a"]))
    assert not cli.is_user_error(RuntimeError("bug")) and not cli.is_user_error(KeyError("bug")) and not cli.is_user_error(OSError(errno.EIO, "bug"))


def test_stray_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", QUICKSTART, "--gpus", "2", "--fast", "model.num_layers=2"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
