"""Paths as users write them, and options that are text."""

from __future__ import annotations

import argparse
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_videogpt.config import paths
from megatron_videogpt.config.check import load_checked
from megatron_videogpt.config.load import ConfigError, load_config, read_config
from megatron_videogpt.config.options import options, value_of
from megatron_videogpt.config.toml import config_to_toml

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "videogpt" / "quickstart.toml")
URLS = ["s3://$BUCKET/panda", "https://a.b/x?k=$y", "file:///$x", "s3://b/{000..012}.tar"]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me$x")
    monkeypatch.setenv("DISK", "/mnt/a$b~")
    monkeypatch.setenv("EMPTY", "")
    for name in ("NOWHERE", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me$x"),
        ("~/v", "/home/me$x/v"),
        ("~root/v", pwd.getpwnam("root").pw_dir + "/v"),
        ("$DISK/v", "/mnt/a$b~/v"),
        ("/x/${DISK}s/$1", "/x//mnt/a$b~s/$1"),
        ("~/$DISK", "/home/me$x//mnt/a$b~"),
        ("a$$b$$DISK/$", "a$b$DISK/$"),
        ("./~/a~", "./~/a~"),
        ("shards/{000..012}.tar", "shards/{000..012}.tar"),
        ("", ""),
        *((url, url) for url in URLS),
    ],
)
def test_a_path_is_expanded(text: str, path: str) -> None:
    assert paths.expand(text) == path
    assert str(paths.place(text)) == path
    if "~" not in path:
        assert paths.expand(paths.literal(path)) == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$NOWHERE/v", "NOWHERE is not set"),
        ("/v/${EMPTY}", "EMPTY is empty"),
        ("~nobody_here/v", "home folder of ~nobody_here is not known"),
    ],
)
def test_what_cannot_be_expanded_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f'[train]\noutput = "{text}"\n[data]\nmixture = {{"{text}" = 1.0}}\n', encoding="utf-8")
    _, problems, broken = read_config(file, [f"codec.path={text}"])
    assert broken == {"train.output", "data.mixture", "codec.path"} and len(problems) == 3
    for line in problems:
        assert line.partition(" = ")[0] in broken and text in line and said in line, line
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        paths.path(text)


def test_every_option_that_is_a_path_is_expanded(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[data]\nmixture = {"~/a" = 1, "s3://$B/c" = 2}\n[condition]\nkind = "text"\n', encoding="utf-8")
    given = ["data.path", "data.cache", "train.output", "train.init_from", "codec.path", "condition.encoder_path"]
    assert {option.name for option in options() if option.path} == {"data.mixture", *given}
    config, problems, _ = read_config(file, [f"{name}=~/$DISK/x" for name in given])
    assert problems == []
    assert {value_of(config, name) for name in given} == {"/home/me$x//mnt/a$b~/x"}
    assert config.data.mixture == {"/home/me$x/a": 1, "s3://$B/c": 2}
    _, problems, _ = read_config(file, ['data.mixture={"~" = 1, "/home/me$$x" = 2}'])
    assert len(problems) == 1 and "two of its paths are the same folder" in problems[0]


def test_what_a_run_wrote_is_not_expanded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, _ = read_config(QUICKSTART, ["train.output=~/runs/a$$b", "data.cache=$DISK"])
    assert (config.train.output, config.data.cache) == ("/home/me$x/runs/a$b", "/mnt/a$b~")
    written = tmp_path / "config.toml"
    written.write_text(config_to_toml(config), encoding="utf-8")
    monkeypatch.setenv("x", "other")
    monkeypatch.setenv("b", "other")
    assert load_config(written) == config, "as of a checkpoint"
    assert read_config(written)[0] == config, "given by a user to a new run"
    # As releases before wrote it.
    written.write_text('[train]\noutput = "/a$b"\ninit_from = "~/c"\n', encoding="utf-8")
    assert (load_config(written).train.output, load_config(written).train.init_from) == ("/a$b", "~/c")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_literal_path_comes_back(path: str) -> None:
    assert paths.stored(paths.literal(path)) == path
    if not path.startswith("~"):
        assert paths.expand(paths.literal(path)) == path


def test_arguments_that_are_there_are_meant_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Ke$ha.mp4").touch()
    (tmp_path / "~nobody_here").touch()
    assert paths.path("Ke$ha.mp4") == Path("Ke$ha.mp4") and paths.place("~nobody_here") == "~nobody_here"
    assert paths.path("~/Ke$$ha.mp4") == Path("/home/me$x/Ke$ha.mp4")


def test_every_command_takes_paths_by_the_same_function() -> None:
    files = [*(ROOT / "megatron_videogpt").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    left = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if "type=Path" in line]
    assert all("argparse.SUPPRESS" in line for line in left), left


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("2024-05-01", "2024-05-01"),
        ("42", "42"),
        ("1e5", "1e5"),
        ("true", "true"),
        ("[x]", "[x]"),
        ("{a = 1}", "{a = 1}"),
        ("runs/x=y #3", "runs/x=y #3"),
        ('"quoted"', "quoted"),
        (r'"a\tb"', "a\tb"),
        (r"'a\tb'", r"a\tb"),
        ('"my "best" \\clips"', 'my "best" \\clips'),
        ('a"b', 'a"b'),
        (" ends with blanks ", " ends with blanks "),
        ("a\nb", "a\nb"),
    ],
)
def test_an_option_that_is_text_takes_any_text(given: str, text: str) -> None:
    config, problems, _ = read_config(QUICKSTART, [f"train.output={given}", f"codec.path = {given}"])
    assert problems == [] and config.train.output == text
    assert config.codec.path == text.strip()


def test_quotes_are_asked_for_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[train]\noutput = 2024-05-01\ninit_from = 42\n[codec]\npath = true\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [line.partition(" (")[0] for line in caught.value.problems] == [
        f'{name} = {value}: must be text in quotes; write for example {name}="{value}"'
        for name, value in (("train.output", "2024-05-01"), ("train.init_from", "42"), ("codec.path", "true"))
    ]


def test_a_name_that_is_no_text_is_refused_in_one_line() -> None:
    _, problems, _ = read_config(QUICKSTART, ["data.path=" + os.fsdecode(b"caf\xe9")])
    assert problems == ["data.path = 'caf\\udce9': must be text in UTF-8; rename that file or folder"]


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    (tmp_path / "x.toml").write_bytes(b'\xef\xbb\xbfbase = "base.toml"\n[model]\nnum_layers = 3\n')
    config = load_checked(tmp_path / "x.toml", [], 1)
    assert (config.train.steps, config.model.num_layers) == (7, 3)
