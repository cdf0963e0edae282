"""Callbacks in a configuration: what is refused, in one line; and the best checkpoint's record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_videogpt.callbacks import KeepBest, Profiler
from megatron_videogpt.callbacks.found import build
from megatron_videogpt.checkpoint.folders import checkpoint_root, complete_folders, prune_by
from megatron_videogpt.config.check import load_checked
from megatron_videogpt.config.load import ConfigError, config_from_dict, load_config
from megatron_videogpt.config.schema import CheckpointConfig, Config, OptimizerConfig, TrainConfig
from megatron_videogpt.config.toml import config_to_toml
from megatron_videogpt.errors import UserError
from tests.callbacks import Careful

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "videogpt" / "quickstart.toml"
CAREFUL = "tests.callbacks.Careful"
TAKES = "it takes steps, share, names, mode"


def problem_of(callbacks: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_checked(EXAMPLE, [f"train.callbacks={callbacks}", *overrides], None)
    (line,) = caught.value.problems
    return str(line)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('"no_package.Thing"', "no_package cannot be imported (ModuleNotFoundError: No module named 'no_package'); "),
        ('"Thing"', "must be the import path of a class, package.module.Class"),
        ('"tests.callbacks.Carefull"', "tests.callbacks has no Carefull; did you mean tests.callbacks.Careful?"),
        ('"tests.callbacks.NotOne"', "is no callback; expected a class that inherits megatron_videogpt.callbacks."),
        ('"json.dumps"', "is no callback"),
        (f'"{CAREFUL}"', f"needs steps; write {{name = ..., steps = ...}}; {TAKES}"),
        (f'{{name="{CAREFUL}", step=1}}', f"has no argument step; {TAKES}"),
        (f'{{name="{CAREFUL}", steps="1"}}', 'steps = "1" must be a whole number'),
        (f'{{name="{CAREFUL}", steps=true}}', "steps = true must be a whole number"),
        (f'{{name="{CAREFUL}", steps=1, share="a"}}', 'share = "a" must be a number'),
        (f'{{name="{CAREFUL}", steps=1, names=[1]}}', "names = [1] must be a list of texts in quotes"),
        (f'{{name="{CAREFUL}", steps=1, mode=3}}', "mode = 3 must be text in quotes"),
        (f'{{name="{CAREFUL}", steps=0}}', "steps = 0 must be at least 1"),
        (f'{{name="{CAREFUL}", steps=10000000}}', "steps = 10000000 are more than train.steps"),
        ("{steps=1}", 'must say name = "package.module.Class"'),
    ],
)
def test_an_entry_that_cannot_work_is_refused_in_one_line(entry: str, said: str) -> None:
    line = problem_of(f"[{entry}]")
    assert line.startswith("train.callbacks = ") and said in line, line


def test_what_is_no_list_of_names_and_tables_is_refused() -> None:
    line = problem_of("tests.callbacks.Careful")
    assert 'must be a list of names in quotes and tables {name = "...", ...}' in line


def test_a_module_that_fails_as_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_callbacks.py").write_text("import tests.callbacks\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = "broken_callbacks cannot be imported (ZeroDivisionError: division by zero)"
    assert said in problem_of('["broken_callbacks.Thing"]')


def test_other_mistakes_are_told_with_those_of_callbacks() -> None:
    with pytest.raises(ConfigError) as caught:
        load_checked(EXAMPLE, ['train.callbacks=["json.dumps", "Thing"]', "train.steps=-1"], None)
    assert [line.split(" = ")[0] for line in caught.value.problems] == ["train.steps"] + ["train.callbacks"] * 2


def test_arguments_arrive_as_declared_and_are_written_back(tmp_path: Path) -> None:
    entries = f'["tests.callbacks.Stopper", {{name="{CAREFUL}", steps=3, share=1, names=["a"], mode="x"}}, "{CAREFUL}"]'
    config = load_config(EXAMPLE, [f"train.callbacks={entries}"])
    assert config.train.callbacks[0] == {"name": "tests.callbacks.Stopper"}
    written = tmp_path / "config.toml"
    written.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(written).train.callbacks == config.train.callbacks
    twice = config.train.callbacks[1:2] * 2
    first, second = build(twice).values()
    assert list(build(twice)) == [CAREFUL, f"{CAREFUL} (2)"]
    assert isinstance(first, Careful) and (first.share, first.names, first.mode) == (1.0, ("a",), "x")
    assert isinstance(first.share, float) and second is not first


def test_reading_a_configuration_from_elsewhere_imports_nothing(tmp_path: Path) -> None:
    """As sampling from a run, or starting from its weights."""
    from megatron_videogpt.config.check import find_problems

    values = {"train": {"callbacks": ["no_package.Thing"]}}
    assert find_problems(config_from_dict(values), None) == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('{name="megatron_videogpt.callbacks.Profiler", active=0}', "active = 0 must be at least 1"),
        ('{name="megatron_videogpt.callbacks.Profiler", ranks=[-1]}', "ranks = [-1] must be numbers from 0"),
        ('{name="megatron_videogpt.callbacks.Profiler", wait=10000}', "wait + warmup + active = 10005 steps, but"),
        ('{name="megatron_videogpt.callbacks.KeepBest", mode="less"}', "mode = 'less' must be one of min, max"),
        ('{name="megatron_videogpt.callbacks.PushToHub", repo="a/b/c"}', "repository 'a/b/c': "),
        ('{name="megatron_videogpt.callbacks.PushToHub", repo="a", dtype="f"}', "dtype = 'f' must be one of keep, "),
        ('{name="megatron_videogpt.callbacks.PushToHub", repo="a", weights="average"}', "needs optimizer.ema_decay"),
    ],
)
def test_ours_refuse_what_they_cannot_do(entry: str, said: str) -> None:
    assert said in problem_of(f"[{entry}]", "optimizer.ema_decay=0")


def test_ours_refuse_runs_in_which_they_cannot_work() -> None:
    best = '["megatron_videogpt.callbacks.KeepBest"]'
    assert "validation_loss is never measured with eval.every = 0" in problem_of(best, "eval.every=0")
    apart = ("eval.every=7", "checkpoint.every=10", "train.steps=60")
    assert "checkpoint.every = 10 and eval.every = 7 meet at the last step alone" in problem_of(best, *apart)
    push = '[{name="megatron_videogpt.callbacks.PushToHub", repo="me/it"}]'
    assert "codec.name = pixels: exported folders have a VAE" in problem_of(push, "codec.name=pixels")


class Run:
    """A run's folder, and what a `KeepBest` is told of it."""

    def __init__(self, folder: Path, keep: int, whole: Config | None = None, **options: Any) -> None:
        self.folder, self.best = folder, KeepBest(**options)
        config = replace(whole or Config(), checkpoint=CheckpointConfig(keep=keep))
        self.context: Any = SimpleNamespace(output=folder, config=config, is_rank_zero=True, step=0)
        self.best.on_train_begin(self.context)

    def measure(self, step: int, value: float) -> None:
        self.context.step = step
        self.best.on_evaluate(self.context, {"validation_loss": value})

    def save(self, step: int) -> None:
        """As `checkpoint.save.Saver` does."""
        path = checkpoint_root(self.folder) / f"step_{step:08d}"
        path.mkdir(parents=True)
        (path / "state.json").write_text("{}")
        prune_by(self.context.config, self.folder)
        self.best.on_save(self.context, path)

    @property
    def kept(self) -> list[int]:
        return [int(path.name[5:]) for path in complete_folders(self.folder)]

    @property
    def record(self) -> tuple[int, float]:
        found = json.loads((checkpoint_root(self.folder) / "best_validation_loss.json").read_text())
        assert found["checkpoint"] == f"step_{found['step']:08d}"
        return found["step"], found["value"]


def test_checkpoints_around_decays_stay_when_the_best_is_another(tmp_path: Path) -> None:
    wsd = OptimizerConfig(schedule="wsd_s", warmup_steps=0, lr_wsd_decay_iters=1, lr_wsd_decay_ends=(2, 5))
    run = Run(tmp_path, 1, Config(optimizer=wsd, train=TrainConfig(steps=5)))
    for step, value in ((1, 0.5), (2, 0.4), (3, 0.3), (4, 0.2), (5, 0.1)):
        run.measure(step, value)
        run.save(step)
    assert run.kept == [1, 2, 4, 5] and run.record == (5, 0.1)


def test_the_best_stays_and_is_let_go_when_another_is_better(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    for step, value, kept in ((1, 0.5, [1]), (2, 0.3, [2]), (3, 0.4, [2, 3]), (4, 0.9, [2, 4]), (5, 0.2, [5])):
        run.measure(step, value)
        run.save(step)
        assert run.kept == kept, step
    assert run.record == (5, 0.2)


def test_a_tie_keeps_the_earlier_and_nan_never_wins(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    for step, value in ((1, math.nan), (2, 0.5), (3, 0.5), (4, math.nan), (5, -math.inf), (6, math.inf)):
        run.measure(step, value)
        run.save(step)
    assert run.record == (2, 0.5) and run.kept == [2, 5, 6]


def test_more_may_be_better_and_a_number_may_come_after_the_save(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, mode="max")
    for step, value in ((1, 0.5), (2, 0.1)):
        run.save(step)
        run.measure(step, value)
    # Nothing was known of the first when the second came.
    assert run.record == (1, 0.5) and run.kept == [1, 2]


def test_the_record_outlives_the_process(tmp_path: Path) -> None:
    first = Run(tmp_path, keep=1)
    first.measure(1, 0.3)
    first.save(1)
    again = Run(tmp_path, keep=1)
    again.measure(2, 0.4)
    again.save(2)
    assert again.record == (1, 0.3) and again.kept == [1, 2]
    # A run that had ended measures its last step once more.
    last = Run(tmp_path, keep=1)
    last.measure(2, 0.1)
    assert last.record == (2, 0.1) and last.kept == [2]


def test_a_record_whose_checkpoint_is_gone_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    checkpoint_root(tmp_path).mkdir()
    record = checkpoint_root(tmp_path) / "best_validation_loss.json"
    for text in (json.dumps({"step": 9, "value": 0.0}), "no JSON", "[]"):
        record.write_text(text)
        run.best.values = {}
        step = max(run.kept, default=0) + 1
        run.measure(step, 0.7)
        run.save(step)
        assert run.record == (step, 0.7)


def test_a_number_that_is_never_measured_is_refused_at_the_first_look(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, monitor="validation_los")
    with pytest.raises(UserError, match="validation_los: no such number; validation measures validation_loss"):
        run.measure(0, 0.5)
    logged = Run(tmp_path, keep=1, monitor="lost")
    logged.best.on_log(logged.context, {"loss": 1.0})
    with pytest.raises(UserError, match="monitor = lost: no such number; there are loss"):
        logged.save(1)


def test_a_profile_that_is_cut_short_is_written_as_far_as_it_came(tmp_path: Path) -> None:
    import torch

    from megatron_videogpt.platforms import activate

    context: Any = SimpleNamespace(output=tmp_path, platform=activate("cpu"), rank=0, world_size=1, step=10)
    profiler = Profiler(wait=0, warmup=1, active=5, shapes=True)
    profiler.on_train_begin(context)
    for context.step in (11, 12, 13):
        torch.ones(3, 4) @ torch.ones(4, 5)
        profiler.on_step_end(context)
    profiler.on_train_end(context)
    (trace,) = (tmp_path / "profile").glob("*.json")
    assert trace.name == "steps_12-13_rank_0.json"
    found = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "aten::mm"]
    assert [event["args"]["Input Dims"] for event in found] == [[[3, 4], [4, 5]]] * 2


def test_a_rank_that_does_not_exist_is_refused_and_the_others_do_nothing(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(output=tmp_path, rank=1, world_size=2, step=0)
    with pytest.raises(UserError, match=r"ranks = \[2\]: the run has 2, from 0 on"):
        Profiler(ranks=(2,)).on_train_begin(context)
    idle = Profiler(ranks=(0,))
    idle.on_train_begin(context)
    idle.on_step_end(context)
    assert idle.profile is None and not list(tmp_path.iterdir())
