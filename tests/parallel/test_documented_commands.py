"""Every command of README and docs: its file exists, its options are known, and the short ones run."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from megatron_videogpt import commands
from megatron_videogpt.config.load import read_config
from tests.parallel.launch import REPOSITORY, interpreter, run

PLACEHOLDERS = ("FILE.toml", "COMMIT", "[", "...", "RUN", "FOLDER", "mylab/")
"""Words that stand for something else; what docs/extending.md makes runs in test_extending.py."""
LAUNCHERS = re.compile(r"^torchrun(?: --[\w-]+=\S+)* ")


def documented() -> list[str]:
    """Commands of all code blocks, fenced or indented, without their comments, each once."""
    found: dict[str, None] = {}
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *((?:python|bash|torchrun|\.venv/bin/python) .+)$", text, re.MULTILINE):
            command = LAUNCHERS.sub("python ", re.split(r" +#|  \.\.\. |`", line)[0]).removeprefix(".venv/bin/")
            found[command.strip()] = None
    return list(found)


@cache
def help_of(*command: str) -> str:
    done = run([*interpreter(*command), "--help"])
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def flags_of(words: list[str]) -> list[str]:
    return [word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")]


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "megatron_videogpt"]:
        path = commands.asked(words[2:]) or (words[2],)
        command, rest = ["-m", "megatron_videogpt", *path], words[2 + len(path) :]
    elif words[0] == "-m":
        return  # somebody else's: pip, compileall, pytest
    else:
        assert (REPOSITORY / words[0]).is_file(), words[0]
        # What has commands of its own, as convert_checkpoint.
        sub = words[1:2] if words[1:2] and f"{{{words[1]}," in help_of(words[0]).replace(" ", "") else []
        sub = sub or (words[1:2] if words[1:2] in (["to-hf"], ["from-hf"]) else [])
        command, rest = [words[0], *sub], words[1 + len(sub) :]
    known = help_of(*command)
    assert [flag for flag in flags_of(rest) if not re.search(rf"{flag}\b", known)] == []
    files = [word for word in rest if word.endswith(".toml") and not word.startswith("--") and "=" not in word]
    overrides = [word for word in rest if re.match(r"^[a-z]+\.[a-z_.]+=", word)]
    for name in files:
        if not name.startswith(PLACEHOLDERS) and command[-1] in ("train", "check"):
            _, problems, _ = read_config(REPOSITORY / name, overrides)
            assert problems == []


@pytest.mark.parametrize("command", documented())
def test_its_files_and_options_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "python":
        check_python(words[1:])
        return
    script = REPOSITORY / words[1]
    assert script.is_file()
    text = script.read_text(encoding="utf-8")
    assert [flag for flag in flags_of(words[2:]) if flag not in text] == []


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "examples").glob("*.sh")))
def test_scripts_teach(script: str) -> None:
    """--help tells what a script does and starts nothing."""
    if script == "setup_env.sh":
        pytest.skip("it is what the others call; its head has its usage")
    done = run(["bash", str(REPOSITORY / "examples" / script), "--help"], cold=True)
    assert done.returncode == 0 and len(done.stdout) > 200, done.stdout + done.stderr


TEACHES = """
import contextlib, io, json, runpy, sys
told = {}
for path in sys.argv[1:]:
    sys.argv, out = [path, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        told[path] = [error.code, out.getvalue()]
    except Exception as error:
        told[path] = [repr(error), out.getvalue()]
print(json.dumps(told))
"""
PARTS = ("gpu_versions.py", "kernel_flash.py", "kernel_triton.py")
"""Files that a tool runs, or that a test does."""


def test_every_tool_starts_and_teaches() -> None:
    tools = [path for path in sorted((REPOSITORY / "tools").glob("*.py")) if path.name not in PARTS]
    commands = [f"tools/{path.name}" for path in tools if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    done = run(interpreter("-c", TEACHES, *commands), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert len(commands) > 35 and list(told) == commands
    assert {path: code for path, (code, _) in told.items() if code not in (0, None)} == {}
    assert {path: text for path, (_, text) in told.items() if len(text) < 200} == {}
    assert sum(path.startswith("tools/benchmark_") for path in commands) <= 8


def test_the_short_ones_run() -> None:
    for command in documented():
        words = shlex.split(command, comments=True)
        plain = not any(word.startswith(PLACEHOLDERS) for word in words)
        mine = words[:3] == ["python", "-m", "megatron_videogpt"]
        if mine and plain and (words[3:] == ["options"] or (words[3] == "check" and "--data" not in words)):
            done = run(interpreter(*words[1:]))
            assert done.returncode == 0, (command, done.stderr[-1000:])


def test_commands_are_found() -> None:
    """The pattern sees fenced and indented blocks, launchers and continued lines."""
    found = documented()
    assert len(found) > 40
    assert any(command.startswith("python -m megatron_videogpt data encode /data/shards") for command in found)
    assert any("--nproc-per-node 8 examples/videogpt/stage1.toml" in command for command in found)
    assert Path(REPOSITORY / "examples" / "quickstart.sh").is_file()
