"""Commands that a module of their own has: what they say, what they refuse, and their older names in tools/."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt import commands, launch
from megatron_videogpt.train.codec.tiny_frames import settings_of

ROOT = Path(__file__).resolve().parents[2]
OLDER = {
    "prepare_videos": ("data", "prepare"),
    "frames_to_videos": ("data", "frames"),
    "encode_latents": ("data", "encode"),
    "encode_text": ("data", "encode-text"),
    "convert_checkpoint": ("convert",),
    "convert_tokenizer": ("convert", "tokenizer"),
    "verify_release": ("convert", "verify"),
    "train_codec": ("codec", "train", "tiny"),
    "train_fsq": ("codec", "train", "fsq"),
    "codec_psnr": ("codec", "psnr"),
    "fit_cost": ("cost",),
    "run_state": ("state",),
}


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", commands.COMMANDS, ids=" ".join)
def test_each_teaches(words: commands.Words, capsys: pytest.CaptureFixture[str]) -> None:
    """An example that parses as this command, and under torchrun where it may run so."""
    text = help_of(capsys, *words)
    name = " ".join(words)
    assert text.startswith(f"usage: python -m megatron_videogpt {name} ") and "--traceback" in text
    assert f"\n  python -m megatron_videogpt {name} " in text
    assert ("torchrun" in text) == commands.COMMANDS[words].shared
    assert len(commands.COMMANDS[words].about) < 60


@pytest.mark.parametrize("words", [(), *commands.GROUPS], ids=lambda words: " ".join(words) or "all")
def test_a_group_lists_what_is_in_it(words: commands.Words, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, *words)
    below = {path[len(words)] for path in (*commands.GROUPS, *commands.COMMANDS) if path[:-1] == words}
    assert below and all(re.search(rf"^    {name}\b", text, re.MULTILINE) for name in below)


def test_a_word_that_is_none_of_them_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["data", "prepar"], "invalid choice: 'prepar'"), (["state"], "required: FILE.toml")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from megatron_videogpt.__main__ import build_parser; build_parser().format_help(); "
        "print([name for name in sys.modules if name in ('torch', 'numpy') or 'prepare' in name or 'convert' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_what_runs_in_one_process_refuses_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert cli.main(["data", "prepare", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: data prepare runs in one process: start it without torchrun\n"


def test_older_names_are_the_same_commands() -> None:
    """Each calls the package with the command's words, and nothing else is in it."""
    for name, words in OLDER.items():
        tree = ast.parse((ROOT / "tools" / f"{name}.py").read_text(encoding="utf-8"))
        (call,) = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main"
        ]
        assert ast.unparse(call) == f"main([{', '.join(map(repr, words))}, *sys.argv[1:]])"
        assert words in commands.COMMANDS or words in commands.GROUPS
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_settings_are_the_options_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    args = cli.parse(["codec", "train", "fsq", "--output", "made", "--levels", "4", "3"])
    found = settings_of(args)
    assert found["output"] == "made" and found["levels"] == [4, 3] and found["videos"] is None
    assert not {"traceback", "help", "parser", "words", "asked", "command"} & found.keys()


def test_another_process_finds_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PYTHONPATH where it is no installed one; an installed one changes nothing."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert launch.package_environment()["PYTHONPATH"] == f"{ROOT}:/elsewhere"
    monkeypatch.setattr(launch.site, "getsitepackages", lambda: [str(ROOT)])
    assert launch.package_environment()["PYTHONPATH"] == "/elsewhere"


def test_the_console_script_keeps_signals_from_its_first_moment(tmp_path: Path) -> None:
    """As pip writes it: a signal that comes while the package is imported is remembered, and ends the command."""
    script = tmp_path / "megatron-videogpt"
    script.write_text(
        "import sys\nimport megatron_videogpt, signal, os\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "from megatron_videogpt.__main__ import main\nsys.exit(main())\n"
    )
    command = [sys.executable, str(script), "options"]
    env = {**launch.package_environment()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr.startswith("stopped by SIGTERM; "), done.stderr
    # A process that another one has started from there is no command.
    code = f"import sys; sys.argv = [{str(script)!r}]; import megatron_videogpt, signal; print(signal.getsignal(15))"
    child = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert child.stdout.strip() == str(signal.SIG_DFL), child.stderr
