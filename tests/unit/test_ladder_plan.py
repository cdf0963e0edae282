"""`scaling plan`: sizes and rules against hand counts, both grids, budgets, and mistakes in a line each."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.config.load import load_config, merge_tables, parse_overrides
from megatron_videogpt.config.schema import Config
from megatron_videogpt.config.toml import to_toml
from megatron_videogpt.scaling.ladder.cost import parse_budget

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "parallel" / "tiny.toml"
GRID: dict[str, Any] = {
    "sizes": [1e4, 4e4],
    "multiples": [0.5, 1, 2],
    "tokens_per_parameter": 3,
    "reference_size": 1e4,
    "parameters": "decoder",
    "aspect": 16.0,
    "lr": 3e-3,
    "batch_tokens": 150,
    "batch_multiple": 2,
    "warmup": 0.05,
    "memory_gb": 1,
}
HEAD, GROUP, RATIO = 8, 2, 1.5
"""Of the recipe: channels of a head, heads for each of keys and values, inner width over width."""


def decoder(width: int, layers: int) -> int:
    """Parameters by hand: queries, keys and values, output; gate, up, down; two norms a layer, and the last one."""
    inner = max(1, round(width * RATIO / 8)) * 8
    return layers * (2 * width**2 + 2 * width * width // GROUP + 3 * width * inner + 2 * width) + width


def nearest(target: float) -> tuple[int, int]:
    """(width, layers) of all whole numbers of heads, by the ratio of parameters."""
    models = [(width, max(1, round(width / 16))) for width in range(HEAD * GROUP, 400, HEAD * GROUP)]
    return min(models, key=lambda model: abs(math.log(decoder(*model) / target)))


def ladder(folder: Path, recipe: str = "", **changes: Any) -> Path:
    """A file with the grid above; None leaves an option out."""
    options = {"output": str(folder / "ladder"), **GRID, **changes}
    lines = [f"{name} = {to_toml(value)}" for name, value in options.items() if value is not None]
    path = folder / "ladder.toml"
    text = "\n".join([f"base = {to_toml(str(TINY))}", "[ladder]", *lines, "[eval]", "samples = 2", recipe])
    path.write_text(text, encoding="utf-8")
    return path


def plan(path: Path, *words: str) -> dict[str, Any]:
    assert main(["scaling", "plan", str(path), *words]) == 0
    return dict(json.loads((path.parent / "ladder" / "ladder.json").read_text(encoding="utf-8")))


def test_runs_follow_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of OLMo-core's form: lr x (N / reference)^(-1/3), batch x (N / reference)^(2/3), warm-up by parameters."""
    found = plan(ladder(tmp_path, beta2=[[0, 0.9], [300, 0.5]], hold_out=[[1.2e5, 2]]), "--json")
    assert json.loads(capsys.readouterr().out) == found
    runs = {run["name"]: run for run in found["runs"]}
    assert list(runs) == [*(f"{size}-x{m}" for size in ("10k", "40k") for m in ("0.5", "1", "2")), "120k-x2"]
    assert [run["held_out"] for run in runs.values()] == [False] * 6 + [True]
    sample = sample_tokens()
    for name, run in runs.items():
        target = {"10k": 1e4, "40k": 4e4, "120k": 1.2e5}[name.split("-")[0]]
        width, layers = nearest(target)
        size = decoder(width, layers)
        assert (run["hidden_size"], run["num_layers"], run["decoder_parameters"]) == (width, layers, size)
        assert run["num_attention_heads"] == width // HEAD and run["parameters"] > size
        samples = max(1, round(150 * (size / 1e4) ** (2 / 3) / sample / 2)) * 2
        batch, multiple = samples * sample, float(name.split("x")[1])
        assert run["samples"] == samples and run["batch_tokens"] == pytest.approx(batch)
        assert run["steps"] == round(multiple * 3 * size / batch) and run["points"] == [run["steps"]]
        assert run["learning_rate"] == pytest.approx(3e-3 * (size / 1e4) ** (-1 / 3), rel=1e-3)
        assert run["beta2"] == (0.5 if batch >= 300 else 0.9) and run["schedule"] == "wsd"
        shortest = round(0.5 * 3 * size / batch)
        assert run["warmup_steps"] == max(1, min(round(0.05 * size / batch), shortest // 4))
        assert run["tokens"] == pytest.approx(run["steps"] * batch)
        assert run["six_nd"] == pytest.approx(6 * size * run["tokens"]) and 0.9 < run["flops"] / run["six_nd"] < 1.5
        config = load_config(tmp_path / "ladder" / "configs" / f"{name}.toml")
        assert config.train.output == str(tmp_path / "ladder" / name) and config.train.steps == run["steps"]
        assert config.eval.every == config.checkpoint.every == math.ceil(run["steps"] / 4)
    assert found["total"]["flops"] == pytest.approx(sum(run["flops"] for run in runs.values()))


def sample_tokens() -> float:
    """Expected tokens of a sample of the recipe, by going through every cut: 4 frames of 4 patches, 1 to 4 clips."""
    means = []
    for clips in range(1, 5):
        cuts = list(itertools.combinations(range(1, 4), clips - 1))
        # The last clip has no clean copy.
        means.append(sum(6 * (4 + (cut[-1] if cut else 0)) for cut in cuts) / len(cuts))
    return sum(means) / len(means)


def test_tables_say_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(ladder(tmp_path, hold_out=[[1.2e5, 2]], gpus=2, gpus_per_run=1))
    printed = capsys.readouterr().out
    for text in (
        "0.003 x (N (decoder) / 10000)^-0.333",
        "whole heads of 8, in multiples of 2",
        "attention on attended pairs",
        "6 N D",
        "codec besides",
        "120k-x2 (held out)",
        "7 runs, 7 points, ",
        "held out: 120k-x2: ",
        f"scaling fit {tmp_path / 'ladder'} --hold-out 1 --parameters decoder",
    ):
        assert text in printed, text


def test_one_run_of_wsd_s_has_the_points_of_several(tmp_path: Path) -> None:
    apart = plan(ladder(tmp_path))["runs"]
    joined = plan(ladder(tmp_path, schedule="wsd_s"))["runs"]
    assert [run["name"] for run in joined] == ["10k", "40k"] and {run["schedule"] for run in joined} == {"wsd_s"}
    for run in joined:
        alone = [one for one in apart if one["name"].startswith(f"{run['name']}-")]
        assert run["points"] == [one["steps"] for one in alone]
        for name in ("learning_rate", "samples", "warmup_steps", "beta2", "parameters"):
            assert {one[name] for one in alone} == {run[name]}
    config = load_config(tmp_path / "ladder" / "configs" / "10k.toml")
    assert list(config.optimizer.lr_wsd_decay_ends) == joined[0]["points"]


def test_budgets_stand_in_for_either_axis(tmp_path: Path) -> None:
    by_ratio = plan(ladder(tmp_path, sizes=None, budgets=[2e9, 8e9], multiples=[1, 4]))["runs"]
    assert [run["name"] for run in by_ratio] == ["c2e+09-x1", "c2e+09-x4", "c8e+09-x1", "c8e+09-x4"]
    for run, (budget, multiple) in zip(by_ratio, ((2e9, 1), (2e9, 4), (8e9, 1), (8e9, 4))):
        target = math.sqrt(budget / (6 * multiple * 3))
        assert run["decoder_parameters"] == decoder(*nearest(target))
        half_step = 0.5 * run["batch_tokens"] * 6 * run["decoder_parameters"]
        assert abs(run["six_nd"] - budget) <= half_step
    by_size = plan(ladder(tmp_path, multiples=None, budgets=[2e9, 8e9]))["runs"]
    assert [run["name"] for run in by_size] == ["10k-c2e+09", "10k-c8e+09", "40k-c2e+09", "40k-c8e+09"]
    for run in by_size:
        half_step = 0.5 * run["batch_tokens"] * 6 * run["decoder_parameters"]
        assert abs(run["six_nd"] - float(run["name"].split("-c")[1])) <= half_step


def test_every_size_may_have_the_same_tokens(tmp_path: Path) -> None:
    runs = plan(ladder(tmp_path, multiples=None, tokens=[3e4, 6e4], hold_out=[[1.2e5, 6.5e4]]))["runs"]
    assert [run["name"] for run in runs] == ["10k-d30k", "10k-d60k", "40k-d30k", "40k-d60k", "120k-d65k"]
    for run, tokens in zip(runs, (3e4, 6e4, 3e4, 6e4, 6.5e4)):
        assert abs(run["tokens"] - tokens) <= run["batch_tokens"] / 2


def test_a_recipe_may_say_how_the_ladders_decays_look(tmp_path: Path) -> None:
    path = ladder(tmp_path, '[optimizer]\nlr_wsd_decay_share = 0.3\nlr_wsd_decay_style = "minus_sqrt"')
    plan(path)
    optimizer = load_config(tmp_path / "ladder" / "configs" / "10k-x1.toml").optimizer
    assert (optimizer.schedule, optimizer.lr_wsd_decay_share) == ("wsd", 0.3)


def test_overrides_reach_the_runs_that_they_name(tmp_path: Path) -> None:
    path = ladder(tmp_path, override=[{"run": "40k-*", "set": ["optimizer.lr=1e-4", "train.micro_batch_size=2"]}])
    rates = {run["name"]: run["learning_rate"] for run in plan(path, "ladder.lr=0", "optimizer.lr=5e-4")["runs"]}
    assert {rates[name] for name in rates if name.startswith("40k")} == {1e-4}
    assert {rates[name] for name in rates if name.startswith("10k")} == {5e-4}


def test_an_override_replaces_a_table_that_is_a_value() -> None:
    """And not key by key: {} takes scaling of positions away."""
    below = {"model": {"rope_scaling": {"type": "su"}, "num_layers": 2}}
    found = merge_tables(Config, below, parse_overrides(["model.rope_scaling={}"]))
    assert found == {"model": {"rope_scaling": {}, "num_layers": 2}}


def test_a_budget_leaves_the_largest_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = plan(ladder(tmp_path))["runs"]
    limit = sum(run["flops"] for run in runs) - 1
    found = plan(tmp_path / "ladder.toml", "--budget", repr(limit))
    assert found["dropped"] == ["40k-x2"] and len(found["runs"]) == 5
    assert "left out for the budget: 40k-x2: " in capsys.readouterr().out
    hours = sum(run["device_hours"] for run in runs[:4]) * 1.001
    assert plan(tmp_path / "ladder.toml", "--budget", f"{hours!r}h")["dropped"] == ["40k-x1", "40k-x2"]
    assert parse_budget("500h") == (500, True) and parse_budget("1e21") == (1e21, False)


LARGE = {"sizes": [1e9], "reference_size": 108e6, "batch_tokens": 327680, "tokens_per_parameter": 20}
MISTAKES: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"siez": 3}, (), "ladder.siez = 3: there is no such option; did you mean ladder.sizes?"),
    ({"lr": "high"}, (), 'ladder.lr = "high": must be a number; write for example ladder.lr=0.00235'),
    ({"gpus": 0}, (), "ladder.gpus = 0: must be above 0; use for example 1"),
    ({"schedule": "cosine"}, (), 'ladder.schedule = "cosine": must be one of wsd, wsd_s, base'),
    ({"multiples": None}, (), "ladder has sizes: a grid is spanned by sizes and multiples, or sizes and tokens, or "),
    ({"budgets": [1e9]}, (), "ladder has sizes, multiples, budgets: a grid is spanned by sizes and multiples, or"),
    ({"sizes": [1e4, 1e4]}, (), "ladder.sizes = [10000.0, 10000.0]: an entry is there twice"),
    ({"sizes": [1e4, 1.01e4]}, (), "10k and 10.1k both give width "),
    ({"sizes": [100]}, (), "ladder.sizes = 100: is 100 parameters, but the smallest model of this recipe has 1,"),
    (
        {"sizes": None, "budgets": [1e4]},
        (),
        "ladder.budgets = 10000 with a multiple of 0.5: is 33 parameters, but the smallest model of this recipe has ",
    ),
    (
        {"multiples": [1, 1.0001]},
        ("ladder.schedule=wsd_s",),
        "two points of size 10k end after the same number of s",
    ),
    ({"hold_out": [[1e4, 0.5]]}, (), "two runs would be called 10k-x0.5"),
    ({"hold_out": [[1e4, 1.5]]}, (), "ladder.hold_out: 10k-x1.5 takes "),
    ({"beta2": [[5, 0.9]]}, (), "ladder.beta2 = [[5.0, 0.9]]: must have pairs [tokens, beta2] from 0 tokens on"),
    ({"override": [{"run": "7k", "set": []}]}, (), "ladder.override: no run is called 7k; names are 10k-x0.5, "),
    ({"override": [{"run": "*"}]}, (), "an entry has run, a name, and set, a list of options as on the command line"),
    (
        {"override": [{"run": "40k-*", "set": ["train.seed=3"]}]},
        (),
        "ladder.override of 40k-x0.5: train.seed is 3 there and 0 in 10k-x0.5; data, objective, seed and valid",
    ),
    (
        {"override": [{"run": "10k-x1", "set": ['eval.levels="independent"']}]},
        (),
        'ladder.override of 10k-x1: eval.levels is "independent" there and "stratified" in 10k-x0.5; data, obj',
    ),
    (
        {"override": [{"run": "*", "set": ["train.stepz=3"]}]},
        (),
        "train.stepz = 3: there is no such option; did you",
    ),
    (
        {"override": [{"run": "*", "set": ["train.steps=3"]}]},
        (),
        "train.steps follows from the ladder; change its",
    ),
    (LARGE, (), "1B-x2: does not fit devices of 1 GB: rows of 42 tokens need "),
    (
        {**LARGE, "layout": "plan"},
        ("--gpus", "2"),
        "no layout that the planner knows fits on 2 of them; use more",
    ),
    (
        {},
        ("--budget", "much"),
        "--budget much: must be FLOPs, for example 1e21, or hours of a device, for ex",
    ),
    ({}, ("--budget", "10"), "--budget 10: pays for no run; the smallest takes "),
    ({"gpus_per_run": 4}, (), "ladder.gpus_per_run = 4: is more than there are, 1; use more --gpus"),
    ({}, ("ladder.validations=0", "eval.every=0"), "eval.every = 0: a point is a validation loss"),
    ({}, ("model.dropout=2",), "model.dropout = 2"),
]


@pytest.mark.parametrize(("changes", "words", "line"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_are_told_in_a_line(
    changes: dict[str, Any], words: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", "plan", str(ladder(tmp_path, **changes)), *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and line in errors[0], errors
    assert not (tmp_path / "ladder").exists()


def test_files_that_are_no_ladders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.toml").write_text("[ladder", encoding="utf-8")
    (tmp_path / "base.toml").write_text('base = "none.toml"\n[ladder]\nsizes=[1e4]\nmultiples=[1]\n', encoding="utf-8")
    tokenizer = TINY.parents[2] / "examples" / "nbp" / "tokenizer_physics.toml"
    grid = "[ladder]\nsizes=[1e9]\nmultiples=[1]\n"
    (tmp_path / "tokenizer.toml").write_text(f"base = {to_toml(str(tokenizer))}\n{grid}", encoding="utf-8")
    for path, line in (
        (TINY, "tiny.toml: has no section [ladder], so that it is no ladder; examples are in examples/scaling/"),
        (tmp_path / "none.toml", "none.toml: there is no such configuration file"),
        (tmp_path / "broken.toml", "broken.toml: must be valid TOML"),
        (tmp_path / "base.toml", "none.toml: there is no such configuration file (the base of "),
        (tmp_path / "tokenizer.toml", "do not grow with the width; a ladder's recipe has a network that [model] desc"),
    ):
        assert main(["scaling", "plan", str(path)]) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert line in error
    assert main(["scaling", "status", str(tmp_path)]) == 2
    assert "has no ladder.json, so that it is no ladder's folder" in capsys.readouterr().err
