"""Whoever starts it, from wherever: outputs that cannot be written, what surrounds a process, names of all kinds."""

from __future__ import annotations

import ast
import errno
import io
import locale
import multiprocessing.process
import multiprocessing.util
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path
from string import Template
from typing import Any

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt import launch
from megatron_videogpt.config import paths
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.check_data import unusable_output
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.prepare import sharing
from megatron_videogpt.data.sources.datasets import cache_of
from megatron_videogpt.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "videogpt" / "quickstart.toml")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file", "file is a file, not a folder"),
        ("file/in/run", "file is a file, not a folder"),
        ("gone", "gone is a link to nowhere, which is not there"),
        ("gone/run", "gone is a link to nowhere, which is not there"),
        ("linked", "its metrics.jsonl is a link to nowhere"),
        ("taken", "its config.toml is a folder"),
        ("logged", "logs is a file, not a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(
    output: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("linked", "taken/config.toml", "logged"):
        Path(folder).mkdir(parents=True)
    Path("file").touch()
    Path("logged/logs").touch()
    Path("gone").symlink_to("nowhere")
    Path("linked/metrics.jsonl").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["train", QUICKSTART, f"train.output={output}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'error: train.output = "{output}": ') and said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("output", "said"), [("file/in", "file is a file"), ("gone", "gone is a link to nowhere")])
def test_outputs_of_other_commands_too(
    output: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("gone").symlink_to("nowhere")
    for code in (
        cli.main(["sample", "--checkpoint", "run", "--scene", "fall/1", "--output", output]),
        cli.main(["sample", "--checkpoint", "run", "--scene", "fall/1", "--output", f"{output}/out.mp4"]),
        cli.main(["data", "prepare", ".", "--output", output]),
    ):
        assert code == 2
    with pytest.raises(UserError, match=said):
        sharing.make_folder(Path(output), f"--output={output}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(said in line and "--output" in line for line in lines), lines


def test_an_output_without_rights_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so that rights themselves tell nothing here.
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    for output in (tmp_path, tmp_path / "a" / "b"):
        (line,) = unusable_output(config_from_dict({"train": {"output": str(output)}}))
        assert line.startswith(f'train.output = "{output}": nothing can be written into {tmp_path} by this user')
    monkeypatch.undo()
    assert unusable_output(config_from_dict({"train": {"output": str(tmp_path / "a" / "b")}})) == []


def test_one_frame_is_refused_with_validation() -> None:
    one = {"frames": 1, "clips": [1, 1]}
    (line,) = find_problems(config_from_dict({"data": one}), 1)
    assert line.startswith("data.frames = 1: must be at least 2")
    alone = {"every": 0, "predict_every": 0, "final_scenes": 0}
    assert find_problems(config_from_dict({"data": one, "eval": alone}), 1) == []
    assert find_problems(config_from_dict({"data": {"frames": 2, "clips": [1, 2]}}), 1) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '': must be a whole number"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE = 'abc': must be a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE = '-1': must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = 0: must be at least 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2, but RANK is not set"),
        ({"RANK": "0"}, "RANK = 0, but WORLD_SIZE is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x': must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2: must be below WORLD_SIZE = 2"),
    ],
)
def test_variables_of_a_launcher_that_do_not_fit(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", QUICKSTART]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "torchrun" in line


def test_the_limit_of_open_files_is_raised_or_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now, set_to = [(64, 4096)], []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    launch.settle()
    now[0] = (1024, resource.RLIM_INFINITY)
    launch.settle()
    assert set_to == [(4096, 4096), (launch.MOST_OPEN, resource.RLIM_INFINITY)]
    now[0] = (64, 64)
    assert cli.main(["train", QUICKSTART, f"train.output={tmp_path}/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: open files: this process may have 64, ") and "ulimit -n" in line
    assert set_to[2:] == [] and list(tmp_path.iterdir()) == []


def test_what_the_surroundings_did_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.fail(OSError(errno.EMFILE, "Too many open files")) == 2
    fault = UnicodeDecodeError("gbk", b"\xff", 0, 1, "illegal multibyte sequence")
    assert launch.explained(fault) is fault
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale: "GBK")
    assert cli.fail(fault) == 2
    many, text = capsys.readouterr().err.splitlines()
    assert "ulimit -n" in many
    assert "GBK" in text and "PYTHONUTF8=1" in text


def test_a_screen_that_lacks_a_character_shows_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="gbk", errors="strict", write_through=True))
    launch.settle()
    print("中\U0001f3ac", os.fsdecode(b"\xe9"))
    assert written.getvalue() == "中\\U0001f3ac \\udce9\n".encode("gbk")


def test_sockets_are_made_where_their_paths_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    # Of this process: what it chose before must not count, nor what is chosen here later.
    monkeypatch.setattr(multiprocessing.process.current_process(), "_config", {})
    with pytest.raises(OSError, match="too long"):
        Listener(family="AF_UNIX")
    monkeypatch.setattr(multiprocessing.process.current_process(), "_config", {})
    launch.shorten_sockets()
    assert tempfile.gettempdir() == str(deep), "other temporary files stay where the user wants them"
    with Listener(family="AF_UNIX") as listener:
        folder = Path(str(listener.address)).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(multiprocessing.process.current_process(), "_config", {})
    monkeypatch.setattr(launch, "SHORT_FOLDERS", (str(tmp_path / "none"),))
    with pytest.raises(UserError, match="TMPDIR = .*set TMPDIR to a folder of at most"):
        launch.shorten_sockets()


def test_without_a_home_folder_there_is_a_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> Any:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Path(cache_of(DataConfig()).folder).is_relative_to(launch.private_folder())
    assert cache_of(DataConfig(cache="/c")).folder == Path("/c")
    monkeypatch.setenv("LOGNAME", "")
    launch.settle()
    assert os.environ["LOGNAME"] == f"user{os.getuid()}"
    with pytest.raises(UserError, match="home folder of ~ is not known; set HOME"):
        paths.expand("~/v")


OPENERS = {"open", "fdopen", "read_text", "write_text", "TextIOWrapper", "NamedTemporaryFile", "TemporaryFile"}
ELSEWHERE = {"os", "av", "Image", "tarfile", "self", "system"}
"""Whose `open` is not that of text."""


def nameless(source: str) -> list[int]:
    """Lines on which text is read or written without its encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function, names = node.func, {keyword.arg: keyword.value for keyword in node.keywords}
        name = getattr(function, "id", getattr(function, "attr", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        # Of the builtin the mode comes second, of a path's method first.
        place = 0 if isinstance(function, ast.Attribute) else 1
        mode = names.get("mode", next(iter(node.args[place : place + 1]), None))
        text = "b" not in str(getattr(mode, "value", "w+b" if name.endswith("TemporaryFile") else ""))
        piped = isinstance(names.get("text"), ast.Constant)
        if "encoding" not in names and (piped or (text and name in OPENERS and owner not in ELSEWHERE)):
            found.append(node.lineno)
    return found


def test_every_text_names_its_encoding() -> None:
    assert nameless('open(x)\nPath(x).read_text()\nrun(c, text=True)\nopen(x, "rb")\nx.open("w")\nos.open(x, y)') == [
        1,
        2,
        3,
        5,
    ]
    files = [*(ROOT / "megatron_videogpt").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    found = {str(file.relative_to(ROOT)): nameless(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_quickstart_takes_a_folder_of_any_name(tmp_path: Path) -> None:
    # A repository of its own, whose environment is this interpreter.
    (tmp_path / "repository/examples").mkdir(parents=True)
    (tmp_path / "repository/.venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "examples/quickstart.sh", tmp_path / "repository/examples")
    (tmp_path / "repository/examples/setup_env.sh").write_text("exit 0\n")
    (tmp_path / "repository/examples/videogpt").symlink_to(ROOT / "examples/videogpt")
    (tmp_path / "repository/megatron_videogpt").symlink_to(ROOT / "megatron_videogpt")
    python = tmp_path / "repository/.venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    folder = tmp_path / "my \"best\" $HOME ~ 'clips' a\\tb = ${x} & [1]\n"
    folder.mkdir()
    command = ["bash", "repository/examples/quickstart.sh", "--check", folder.name, "train.steps=7"]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "model FLOPs per step" in done.stdout and "note, before training" not in done.stdout
    assert not (tmp_path / "repository/runs").exists()
    # torchrun rewrites the arguments of its processes, and so this one must not be what it changes.
    script = (ROOT / "examples/quickstart.sh").read_text(encoding="utf-8")
    (option,) = [line for line in script.splitlines() if "overrides=('data.path" in line]
    assert Template(option).safe_substitute(local_rank="0") == option
