"""Callbacks of a run of two replicas: when they are told, what one that fails on one rank alone stops, and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint.folders import complete_folders
from tests.outside.site import TINY

from .launch import REPOSITORY, torchrun

STEPS = 6
RUN = (f"train.steps={STEPS}", "checkpoint.every=2", "checkpoint.keep=1", "eval.every=3", "eval.samples=2")
PROFILER = '{name="megatron_videogpt.callbacks.Profiler", wait=1, warmup=1, active=2, ranks=[1], memory=true}'
BEST = '{name="megatron_videogpt.callbacks.KeepBest", monitor="loss"}'
CASES = {
    "whole": (f"{PROFILER}, {BEST}",),
    "alone": ('{name="tests.callbacks.Failing", rank=1, event="on_step_end", step=3}',),
    "alone, again": ("",),
    "user": ('{name="tests.callbacks.Failing", rank=1, event="on_save", user=true}',),
    "begin": ('{name="tests.callbacks.Failing", rank=1, event="on_train_begin"}',),
    "end": ('{name="tests.callbacks.Failing", rank=0, event="on_train_end"}',),
    "stop": ('{name="tests.callbacks.Stopper", rank=1, step=3}',),
    "none": (None,),
    "asked": ('{name="tests.callbacks.Stopper", rank=0, step=3, signalled=true}',),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch for all cases; "alone, again" goes on in the folder of "alone"."""
    folder = tmp_path_factory.mktemp("callbacks")
    cases = []
    for name, (listed,) in CASES.items():
        run = name.partition(",")[0]
        recorder = f'{{name="tests.callbacks.Recorder", file="{folder / name}.{{rank}}"}}'
        told = "[]" if listed is None else f"[{', '.join(filter(None, [listed, recorder]))}]"
        cases.append([str(TINY), [*RUN, f"train.output={folder / 'runs' / run}", f"train.callbacks={told}"]])
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    worker = REPOSITORY / "tests" / "parallel" / "callbacks_worker.py"
    torchrun(2, str(worker), str(folder / "cases.json"), str(folder / "outcomes"))
    return folder


def outcome(folder: Path, name: str) -> list[list[str]]:
    """Of a case, on both ranks."""
    number = list(CASES).index(name)
    return [json.loads((folder / f"outcomes.{rank}").read_text())[number] for rank in (0, 1)]


def events(folder: Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.{rank}").read_text().splitlines()]


def saved(folder: Path, name: str) -> list[str]:
    return [path.name for path in complete_folders(folder / "runs" / name)]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def test_callbacks_are_told_of_everything_on_every_rank_in_order(folder: Path) -> None:
    assert outcome(folder, "whole") == [["", "", ""]] * 2
    mine = events(folder, "whole")
    # The numbers of a step are there when the next one is queued, or where the run waits for them.
    expected = ["begin 0", "evaluate 0", "step 1", "log 1", "step 2", "log 2", "save 2"]
    expected += ["step 3", "log 3", "evaluate 3", "step 4", "log 4", "save 4"]
    expected += ["step 5", "log 5", "step 6", "log 6", "save 6", "evaluate 6", "end 6"]
    assert [f"{line['event']} {line['step']}" for line in mine] == expected
    other = events(folder, "whole", 1)
    for line in (*mine, *other):
        # A rank's own clock, and what a rank's memory is, may differ.
        line["numbers"] = {name: value for name, value in line.get("numbers", {}).items() if "loss" in name}
    assert other == mine
    assert {line["ending"] for line in mine[:-1]} == {""} and mine[-1]["ending"] == "finished"
    assert all(line["complete"] for line in mine if line["event"] == "save")


def test_the_numbers_are_those_of_the_log(folder: Path) -> None:
    told = {
        (line["step"], name): value
        for line in events(folder, "whole")
        for name, value in line.get("numbers", {}).items()
        if "loss" in name
    }
    written = {(line["step"], name): line[name] for line in lines(folder, "whole") for name in line if "loss" in name}
    assert told == written and len(told) > STEPS


def test_callbacks_change_no_number(folder: Path) -> None:
    losses = [[line["loss"] for line in lines(folder, name) if "loss" in line] for name in ("whole", "none")]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_a_fault_of_one_rank_alone_ends_all_after_a_checkpoint_and_is_named(folder: Path) -> None:
    peer, own = outcome(folder, "alone")
    said = "callback tests.callbacks.Failing, on_step_end at step 3: ZeroDivisionError: no spoon"
    assert own == ["CallbackFailed", f"CallbackFailed: {said}", "ZeroDivisionError"]
    assert peer[0] == "PeerFailed" and said in peer[1]
    first = events(folder, "alone")
    assert first[-1]["event"] == "end" and first[-1]["ending"] == "failed", "the others are told of the end"
    assert max(line["step"] for line in first) == 4


def test_the_same_command_goes_on_from_there(folder: Path) -> None:
    begun = events(folder, "alone, again")[0]
    assert (begun["event"], begun["step"]) == ("begin", 4)
    losses = [[line["loss"] for line in lines(folder, name) if "loss" in line] for name in ("whole", "alone")]
    assert losses[0] == losses[1]
    assert events(folder, "alone, again")[-1]["weights"] == events(folder, "whole")[-1]["weights"]


def test_what_a_user_can_mend_stays_one_line_on_all_ranks(folder: Path) -> None:
    said = "callback tests.callbacks.Failing, on_save at step 2: spoon = 0: must be above 0"
    for kind, text, _ in outcome(folder, "user"):
        assert kind == "RunError" and text == f"rank 1, after the last callbacks: {said}"


def test_one_that_cannot_start_costs_no_step(folder: Path) -> None:
    said = "callback tests.callbacks.Failing, on_train_begin at step 0: ZeroDivisionError: no spoon"
    assert [kind for kind, *_ in outcome(folder, "begin")] == ["PeerFailed", "CallbackFailed"]
    assert all(said in text for _, text, _ in outcome(folder, "begin"))
    assert saved(folder, "begin") == [] and not (folder / "runs" / "begin" / "metrics.jsonl").exists()


def test_one_that_fails_at_the_end_keeps_no_other_from_it(folder: Path) -> None:
    assert [kind for kind, *_ in outcome(folder, "end")] == ["CallbackFailed", "PeerFailed"]
    assert events(folder, "end")[-1]["event"] == "end" and saved(folder, "end") == ["step_00000006"]


@pytest.mark.parametrize(("name", "ending"), [("stop", "stopped"), ("asked", "asked")])
def test_one_rank_may_ask_for_a_clean_end_as_a_signal_does(folder: Path, name: str, ending: str) -> None:
    assert outcome(folder, name) == [["", "", ""]] * 2
    assert saved(folder, name) == ["step_00000004"]
    assert [events(folder, name, rank)[-1]["ending"] for rank in (0, 1)] == [ending] * 2


def test_the_best_checkpoint_outlives_the_newer_ones(folder: Path) -> None:
    losses = {line["step"]: line["loss"] for line in lines(folder, "whole") if "loss" in line}
    best = min((2, 4, 6), key=lambda step: losses[step])
    record = json.loads((folder / "runs" / "whole" / "checkpoints" / "best_loss.json").read_text())
    assert (record["step"], record["value"]) == (best, losses[best])
    assert saved(folder, "whole") == sorted({f"step_{step:08d}" for step in (best, 6)})


def test_the_profiler_traces_the_steps_it_was_told(folder: Path) -> None:
    place = folder / "runs" / "whole" / "profile"
    name = "steps_3-4_rank_1"
    assert sorted(path.name for path in place.iterdir()) == [f"{name}.json", f"{name}.txt", f"{name}_memory.txt"]
    trace = json.loads((place / f"{name}.json").read_text())["traceEvents"]
    found = [event["name"] for event in trace if "name" in event]
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= set(found) and "ProfilerStep#4" not in found
    # Of the two steps: the loss's backward pass and a matrix of every layer, forward and backward.
    assert sum("aten::mm" in event for event in found) >= 2 * 2 * 3
    assert any("autograd::engine" in event for event in found) and "[memory]" in found
    assert "Self CPU" in (place / f"{name}.txt").read_text()
