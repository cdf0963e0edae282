"""`--shrink`: small runs of every example in every layout, which keep to every rule, and what the option prints."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import load_config, read_config
from megatron_videogpt.config.options import options, value_of
from megatron_videogpt.config.schedules import decays
from megatron_videogpt.config.schema import Config
from megatron_videogpt.config.shrink import FACTOR, fewer, shrink, with_factor
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.build import parameter_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.toml") if path.parent.name not in ("datasets", "scaling"))
STAGE4 = str(EXAMPLES / "videogpt" / "stage4.toml")
LAYOUTS = (
    *("", "parallel.tensor=2", "parallel.tensor=4 parallel.sequence=true", "parallel.context=2"),
    *("parallel.tensor=2 parallel.context=4", "parallel.pipeline=2", "parallel.pipeline=2 parallel.virtual_pipeline=2"),
    *("parallel.pipeline=4 parallel.tensor=2 parallel.recompute=full parallel.recompute_layers=3", "data.min_frames=2"),
    *("data.pack_tokens=70000 train.micro_batch_size=1", "model.num_query_groups=2", "train.global_batch_size=8"),
)
"""Options, of which each file is tried with those that it takes."""
GROWN = {"train.output", "train.init_from"}


def read(file: Path | str, overrides: list[str]) -> Config:
    """With a folder of videos where the file leaves that to the user."""
    config, problems, _ = read_config(file, overrides)
    assert problems == []
    if config.data.source == "physics" or config.data.path:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path="videos"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_small_run_keeps_to_every_rule_and_nothing_grows(file: Path) -> None:
    tried, one = 0, read(file, [])
    assert find_problems(one, 1) == []
    for layout, factor in itertools.product(LAYOUTS, (2, FACTOR, 10_000)):
        config = read(file, layout.split())
        world = 2 * config.parallel.model_size
        if find_problems(config, None):
            continue
        tried += 1
        small, changes = shrink(config, factor, world_size=world)
        assert find_problems(small, world) == [], (layout, factor)
        assert {each.name for each in changes} >= {"train.output", "train.steps"}
        for each in changes:
            if each.name not in GROWN and each.name != "train.global_batch_size":
                pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (each.now, each.was)))
                assert all(now <= was for now, was in pairs), each
        assert small.parallel == dataclasses.replace(config.parallel, recompute_layers=small.parallel.recompute_layers)
        assert small.codec == config.codec and small.data.source == config.data.source
        assert small.model.head_dim == config.model.head_dim
    assert tried >= 3


def test_stages_given_by_hand_stay_as_many(tmp_path: Path) -> None:
    layers = [6, 9, 9, 8]
    given = ["parallel.pipeline=2", "parallel.virtual_pipeline=2", f"parallel.pipeline_layers={layers}"]
    config = load_config(STAGE4, given)
    small, _ = shrink(config, 4, world_size=2)
    assert small.parallel.pipeline_layers == (2, 3, 3, 2) and small.model.num_layers == 10
    assert find_problems(small, 2) == []
    stays, _ = shrink(config, 4, ["parallel.pipeline_layers"], 2)
    assert stays.parallel == config.parallel and stays.model.num_layers == 32


@pytest.mark.parametrize(
    "schedule",
    [
        ("wsd", "lr_wsd_decay_iters=500"),
        ("wsd", "lr_wsd_decay_share=1.0"),
        ("wsd_s", "lr_wsd_decay_ends=[5000, 90000]"),
    ],
)
def test_schedules_that_decay_end_with_the_small_run(schedule: tuple[str, str]) -> None:
    name, option = schedule
    given = [f"optimizer.schedule={name}", f"optimizer.{option}", "train.steps=90000", "optimizer.warmup_steps=0"]
    small, _ = shrink(load_config(STAGE4, given))
    assert find_problems(small, None) == [] and decays(small.optimizer, small.train.steps) == [(1, 2)]


def test_what_is_given_stays() -> None:
    """Any options of a file, by name: none of them moves."""
    config, drawn = load_config(STAGE4), random.Random(0)
    names = [option.name for option in options(of=config)]
    for _ in range(50):
        given = drawn.sample(names, 30)
        small, changes = shrink(config, given=given)
        assert [value_of(small, name) for name in given] == [value_of(config, name) for name in given]
        assert not {each.name for each in changes} & set(given)


def test_the_stages_become_one_model_after_another() -> None:
    """Each starts from the small run of the one before; their model is the same, and 3.66 billion parameters less."""
    stages = [load_config(EXAMPLES / "videogpt" / f"stage{number}.toml") for number in (1, 2, 3, 4)]
    small = [shrink(config)[0] for config in stages]
    assert len({repr(config.model) for config in small}) == 1
    assert [config.train.init_from for config in small[1:]] == [config.train.output for config in small[:-1]]
    assert small[0].train.output == "runs/videogpt/stage1-shrunk" and not small[0].train.init_from
    model = small[0].model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads, model.ffn_hidden_size) == (2, 192, 2, 512)
    assert sum(component_parameters(parameter_table(small[0]), model, 4).values()) < 3e6
    sizes = [(config.data.frames, config.data.clips, config.data.longest_side) for config in small]
    assert sizes == [(4, (4, 4), 64), (4, (2, 4), 64), (4, (2, 4), 64), (5, (2, 5), 64)]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((3072, 1, 16), 192),
        ((33, 1, 16), 3),
        ((5, 1, 16, 4), 4),
        ((3, 1, 16, 4), 3),
        ((320, 1, 16, 64, 16), 64),
        ((300, 1, 16, 1, 16), 32),
        ((0, 1, 16, 4), 0),
        ((9, 2, 8), 3),
    ],
)
def test_rounding(numbers: tuple[int, ...], expected: int) -> None:
    assert fewer(*numbers) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("check --shrink x.toml", "check --shrink=16 x.toml"),
        ("check x.toml --shrink train.steps=3", "check x.toml --shrink=16 train.steps=3"),
        ("check x.toml --shrink 8 train.steps=3", "check x.toml --shrink 8 train.steps=3"),
        ("check x.toml --shrink", "check x.toml --shrink=16"),
        ("check x.toml --shrink=4", "check x.toml --shrink=4"),
    ],
)
def test_the_number_may_be_left_out(words: str, expected: str) -> None:
    assert with_factor(words.split()) == expected.split()


@pytest.mark.parametrize("number", ["1", "-3", "=x"])
def test_another_number_is_refused_in_one_line(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--shrink{number}"] if number.startswith("=") else ["--shrink", number]
    with pytest.raises(SystemExit):
        cli.main(["check", STAGE4, *words])
    assert "must be a whole number of at least 2, for example 16" in capsys.readouterr().err


def test_check_prints_what_changes_and_estimates_the_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", STAGE4, "--shrink", "8", "--gpus", "2", "parallel.tensor=2", "data.frames=80"]) == 0
    table, _, report = capsys.readouterr().out.partition("Model")
    lines = [line.split("  ") for line in table.splitlines()]
    rows = {words[1]: [word.strip() for word in words[2:] if word.strip()] for words in lines if len(words) > 1}
    assert lines[0] == ["shrunk: sizes divided by 8; what the command line gives stays"]
    assert rows["option"] == ["was", "is"] and rows["model.hidden_size"] == ["3072", "384"]
    assert rows["train.output"] == ['"runs/videogpt/stage4"', '"runs/videogpt/stage4-shrunk"']
    assert "data.frames" not in rows and "parallel.tensor" not in rows
    assert "TP 2 x PP 1 x DP 1 = 2" in report and "2 steps" in report


def test_what_the_real_run_would_be_refused_for_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["check", STAGE4, "--shrink", "parallel.tensor=3", "train.step=2"]
    assert cli.main(wrong) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == ["error: train.step", "error: parallel.tensor"]


def test_a_block_stays_rows_of_tokens() -> None:
    def block(*given: str) -> Any:
        return shrink(read(EXAMPLES / "nbp" / "k600_700m.toml", list(given)))[0].objective

    found = [block(f"objective.block={size}").block for size in (1, 8, 16, 32, 64, 256)]
    assert found == [1, 2, 4, 4, 4, 16], "of 4x4 tokens where there were 16x16"
    shaped = block("objective.block=16", "objective.block_shape=[1,2,8]", "data.frames=5")
    assert shaped.block_shape == (1, 1, 2) and shaped.block == 2
