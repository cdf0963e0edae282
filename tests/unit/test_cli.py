"""The command line: help, exit codes, one line per problem."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.errors import PeerFailed, UserError
from megatron_videogpt.objective.build import parameter_table

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "videogpt" / "quickstart.toml")


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["check", "--help"], ["options", "--help"]])
def test_help_teaches_and_exits_cleanly(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 0
    assert "TOML" in capsys.readouterr().out.upper()


def test_help_and_a_wrong_file_do_not_load_pytorch() -> None:
    code = (
        "import sys; from megatron_videogpt.__main__ import main; main(['options']); main(['train', "
        "'none.toml']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_options_prints_a_file_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options"]) == 0
    path = tmp_path / "all.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(path) == Config()


def test_check_prints_parameters_layout_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_videogpt.codec.geometry import expected_geometry
    from megatron_videogpt.model.flops import component_parameters

    assert cli.main(["check", QUICKSTART, "--gpus", "4", "parallel.tensor=2", "model.num_layers=2"]) == 0
    out = capsys.readouterr().out
    config = load_config(QUICKSTART, ["model.num_layers=2"])
    channels = expected_geometry(config.codec).channels
    channels = expected_geometry(config.codec).channels
    total = sum(component_parameters(parameter_table(config), config.model, channels).values())
    for expected in (
        f"{total:,}",
        "decoder.layers x 2",
        "TP 2 x PP 1 x DP 2 = 4",
        "activations",
        "model FLOPs per step",
    ):
        assert expected in out


def test_check_notes_folders_that_are_not_there_yet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", str(ROOT / "examples/videogpt/stage2.toml"), "--gpus", "320"]) == 0
    out = capsys.readouterr().out
    assert "3,663,581,200" in out
    assert all(f"note, before training: {name} = " in out for name in ("train.init_from", "data.path", "codec.path"))


def test_train_stops_on_missing_folders_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    assert (
        cli.main(
            [
                "train",
                QUICKSTART,
                "parallel.tensor=1",
                "parallel.sequence=false",
                "data.source=videos",
                "data.path=gone",
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert err == 'error: data.path = "gone": there is no such folder; give a folder with video files\n'
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_one_error_line_and_only_rank_0_prints_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", QUICKSTART, "model.hidden_size=250", "train.steps=none", "data.fames=3"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        "error: data.fames",
        "error: train.steps",
        "error: model.hidden_size",
    ]


def ended(seconds: float) -> None:
    """What the launcher does to a rank that sleeps when another one has ended."""
    raise SystemExit(f"slept {seconds:g}")


@pytest.fixture
def sigterm() -> Iterator[None]:
    """A silent rank lets SIGTERM end it: only here it must not."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("sigterm")
def test_a_rank_stays_silent_until_it_is_ended_and_speaks_where_nobody_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", QUICKSTART, "model.hidden_size=250"]
    monkeypatch.setenv("WORLD_SIZE", "16")
    for rank, local, seconds in (("1", "1", 20), ("8", "0", 10)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setattr(cli.time, "sleep", ended)
        with pytest.raises(SystemExit, match=f"slept {seconds}"):
            cli.main(argv)
        assert capsys.readouterr().err == "" and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        # Rank 0 has another configuration, or sees other files.
        monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
        assert cli.main(argv) == 2
        assert capsys.readouterr().err.startswith(f"error (rank {rank}): model.hidden_size = 250")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("frames = 3: too few;\n  use more"), "error: frames = 3: too few; use more"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left on device"),
        (BadVideo("x.mp4", "is empty"), "error: x.mp4: is empty"),
    ],
)
def test_user_errors_are_one_line_without_traceback(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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


FAULTS = (
    ValueError("bug"),
    KeyError("bug"),
    RuntimeError("bug"),
    OSError(errno.EIO, "bug"),
    FileNotFoundError(errno.ENOENT, "bug"),
    PermissionError("bug"),
)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_fault_keeps_its_traceback_and_names_its_rank(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep(config: object, phase: object) -> None:
        raise error

    monkeypatch.setattr(cli, "COMMANDS", {"options": lambda args: deep(args, args)})
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(type(error), match="bug") as caught:
        cli.main(["options"])
    assert "deep" in [entry.name for entry in caught.traceback] and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(type(error), match="bug"):
        cli.main(["options"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error (rank 3): {type(error).__name__}: ") and "bug" in line


@pytest.mark.usefixtures("sigterm")
def test_a_rank_that_ends_with_another_one_has_nothing_to_add(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> None:
        raise PeerFailed(9, "rank 9 failed, reading the data of step 4: KeyError: 'x'")

    monkeypatch.setitem(cli.COMMANDS, "options", fail)
    monkeypatch.setattr(cli.time, "sleep", ended)
    with pytest.raises(SystemExit):
        cli.main(["options"])
    assert capsys.readouterr().err == ""
    # On another machine nobody ends it.
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    assert cli.main(["options"]) == 1
    assert "rank 9 failed, reading the data of step 4" in capsys.readouterr().err


def test_stray_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", QUICKSTART, "--gpus", "2", "--fast", "model.num_layers=2"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
