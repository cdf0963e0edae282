"""The files of recipes: their options, and what is wrong with one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from megatron_videogpt.__main__ import main, parse
from megatron_videogpt.config.load import tomllib
from megatron_videogpt.data.prepare import cli

from . import test_frame_folders, test_recipes
from .test_recipes import RECIPES, REPOSITORY


def parsed(*words: str) -> argparse.Namespace:
    """The command line over its recipe."""
    return cli.with_recipe(parse(["data", "prepare", *words]))


def test_every_recipe_is_one_of_these() -> None:
    """Their options exist and have the right types; every file has its test above and its
    section in docs/datasets.md.
    """
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    assert names == ["kinetics600", "msrvtt", "openvid1m", "panda70m", "skytimelapse", "ucf101"]
    assert all(hasattr(test_recipes, f"test_{name}") or hasattr(test_frame_folders, f"test_{name}") for name in names)
    text = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
    for name in names:
        assert f"examples/datasets/{name}.toml" in text
        recipe = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
        args = parsed("--recipe", str(RECIPES / f"{name}.toml"), "SRC", "--output", "OUT")
        assert {option: getattr(args, option) for option in recipe} == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sidecars = 1", "must be like False"),
        ("worker = 2", "no option"),
        ("a = [", "TOML"),
        ("min_side = 'x'", "must be like 128"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(text)
    command = ["--recipe", tmp_path / "r.toml", tmp_path, "--output", tmp_path / "out"]
    assert main(["data", "prepare", *map(str, command)]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('min_side = 64\nwhere = ["a==1"]\nmax_aspect = 3\nlist_columns = ["x", "y"]\n')
    recipe = str(tmp_path / "r.toml")
    args = parsed("SRC", "--recipe", recipe, "--output", "OUT", "--min-side", "32", "--where", "b>2")
    options = cli.options_of(args)
    assert (options.min_side, options.max_aspect, options.listing.where, options.listing.list_columns) == (
        32,
        3,
        ("a==1", "b>2"),
        ("x", "y"),
    )
