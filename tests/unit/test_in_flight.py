"""Steps in flight: when the host asks for numbers, what the run's state says meanwhile, and what is logged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.build import work_of
from tests.session import Session

pytestmark = pytest.mark.usefixtures("processes")


class Codec:
    """As much of a codec as a step asks for."""

    channels, spatial_stride, temporal_stride = 4, 8, 1


def start(
    output: Path, every: int = 1, steps: int = 100, session: Session | None = None, state: Any = None, **optimizer: Any
) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    """(steps of a tiny run, the lines that it logs); the run knows its session."""
    from megatron_videogpt.config.schema import LoggingConfig, TrainConfig
    from megatron_videogpt.platforms import activate, world
    from megatron_videogpt.train.in_flight import InFlightSteps
    from megatron_videogpt.train.run import Run, State

    session = session or Session(**optimizer)
    config = replace(
        session.config,
        train=TrainConfig(precision="fp32", steps=steps, global_batch_size=1, output=str(output)),
        logging=LoggingConfig(every=every, peak_tflops=100.0),
    )
    lines: list[tuple[int, dict[str, float]]] = []
    control = world.control_group()
    parts = session.objective, session.networks, session.average
    run = Run(config, activate("cpu"), Codec(), *parts, None, control, lambda *_, **__: None, state or State())
    run.session = session  # type: ignore[attr-defined]
    return InFlightSteps(run, lambda step, line: lines.append((step, line))), lines


def samples(
    broken: tuple[int, ...] = (), factor: float = math.nan, lost: tuple[int, ...] = (), outage: tuple[int, ...] = ()
) -> Iterator[Any]:
    """Steps of one row of one sample; the latents of broken ones (from 1) are multiplied; beside lost ones there is a
    second row, a blank.

    In steps of an outage there is nothing but two blanks, and they take no number from the samples.
    """
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.train.feed import StepData

    def blank(key: int, name: str) -> Sample:
        return Sample(key, name, torch.zeros(2, 4, 4, 4), None, (1, 1), scored=False)

    objective = build_objective(Config(model=ModelConfig(position_table_size=4)))
    number, gone = 0, 0
    while True:
        while number + gone + 1 in outage:
            gone += 1
            blanks = [blank(-gone - n, f"gone {gone}") for n in (100, 200)]
            yield StepData([], [objective.prepare([one], 40) for one in blanks], {"truncated": 2})
        number += 1
        latents = normal(number, "latents", (4, 4, 4, 4)) * (factor if number in broken else 1.0)
        good = Sample(key=number, name=f"video {number}", mean=latents, logvar=None, clips=(1, 2, 1))
        rows = [objective.prepare([good], 42)]
        if number in lost:
            rows.append(objective.prepare([blank(-number, f"lost {number}")], 40))
        yield StepData([good], rows, {"truncated": 1} if number in lost else {})


def test_numbers_are_read_when_the_next_step_has_work_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_videogpt.train import in_flight, step

    events: list[str] = []
    for owner, name in ((step, "run_schedule"), (step, "update"), (in_flight.NormGate, "record")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _name=name, _real=real, **k: (events.append(_name), _real(*a, **k))[1]
        )
    tested, _ = start(tmp_path)
    data = samples()
    for _ in range(3):
        tested.launch(data)
    assert events == ["run_schedule", "update", "run_schedule", "record", "update", "run_schedule", "record", "update"]
    tested.complete()
    tested.complete()
    assert events[-1] == "record" and events.count("record") == 3


def test_lines_have_the_numbers_of_their_own_steps(tmp_path: Path) -> None:
    one, every_line = start(tmp_path)
    two, some_lines = start(tmp_path, every=2, steps=5)
    first, second = samples(), samples()
    due = []
    for _ in range(5):
        one.launch(first)
        due.append(two.launch(second))
    assert (
        due == [False, True, False, True, True]
        and [step for step, _ in some_lines] == [2, 4]
        and [step for step, _ in every_line] == [1, 2, 3, 4]
    )
    one.complete()
    two.complete()
    assert [step for step, _ in some_lines] == [2, 4, 5] and [step for step, _ in every_line] == [1, 2, 3, 4, 5]
    losses = {step: line["loss"] for step, line in every_line}
    for (step, line), parts in zip(some_lines, ((1, 2), (3, 4), (5,))):
        # Every step counts four frames.
        assert line["loss"] == pytest.approx(sum(losses[part] for part in parts) / len(parts), rel=1e-6)
        assert line["grad_norm"] == every_line[step - 1][1]["grad_norm"] and line["step_time"] > 0
        assert line["mfu"] == line["tflops_per_device"] / 100 and line["hfu"] / line["mfu"] == pytest.approx(
            1 + vain_share(one.run.config.model)
        )


def vain_share(model: Any) -> float:
    """FLOPs that the last layer spends in vain on the samples here, as a share of what the model needs: queries of the
    26 rows of 42 that no head reads.
    """
    from megatron_videogpt.model.flops import training_flops
    from megatron_videogpt.objective.next_clip.work import clip_work

    row = clip_work((1, 2, 1), patches=4)
    assert row.tokens == 42
    # Noisy patches see the clean frames before their clip and all of their clip, in blocks of 6.
    scored_pairs = 4 * 6 + 8 * (6 + 12) + 4 * (18 + 6)
    weights = work_of(Config(model=model), Codec()).weights
    needed = training_flops(model, weights, 42, row.pairs, (26, row.pairs - scored_pairs))
    return 6 * model.hidden_size * model.num_attention_heads * model.head_dim * 26 / needed


def test_lines_say_what_encoding_took_and_what_of_it_was_waited_for(tmp_path: Path) -> None:
    tested, lines = start(tmp_path, every=2, steps=4)
    data = (replace(step, encode_time=seconds) for step, seconds in zip(samples(), (10.0, 20.0, 0.0, 0.0)))
    assert [tested.launch(data) for _ in range(4)] == 2 * [False, True]
    tested.complete()
    first, second = (line for _, line in lines)
    assert first["encode_time"] == pytest.approx(15.0) and 0 < first["encode_wait"] == first["data_wait"]
    assert {"encode_time", "encode_wait"}.isdisjoint(second)


def test_state_is_that_of_the_last_step_once_landed(tmp_path: Path) -> None:
    tested, lines = start(tmp_path, every=3, max_skipped=5)
    data, state = samples(broken=(2,)), tested.run.state
    for _ in range(2):
        tested.launch(data)
    # The second step is still in the air.
    assert (state.step, state.consumed, state.updates, state.skipped) == (2, 2, 1, 0)
    tested.flush()
    assert (state.step, state.updates, state.skipped, len(state.norms)) == (2, 1, 1, 1)
    # Only the first step counts: four frames.
    assert state.pending["loss"][1] == 4 and lines == []
    assert (
        '"step": 2, "grad_norm": null' in (tmp_path / "skipped.jsonl").read_text()
        and "video 2" in (tmp_path / "skipped.jsonl").read_text()
    )
    tested.launch(data)
    tested.flush()
    ((step, line),) = lines
    assert step == 3 and line["skipped_steps"] == 1 and state.pending == {} and (state.updates, state.skipped) == (2, 0)


def test_a_limit_knows_all_steps_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.train import health, step

    monkeypatch.setattr(health, "REMEMBERED", 4)
    tested, lines = start(tmp_path, spike_factor=1.5, max_skipped=100)
    limits: list[float] = []
    real = step.update
    monkeypatch.setattr(step, "update", lambda *a: (limits.append(a[2]), real(*a))[1])
    data = samples(broken=(6,), factor=1000.0)
    for _ in range(9):
        tested.launch(data)
    tested.complete()
    norms, expected, taken = [line["grad_norm"] for _, line in lines], [], []
    for norm in norms:
        recent = sorted(taken[-4:])
        median = (recent[(len(recent) - 1) // 2] + recent[len(recent) // 2]) / 2 if recent else 0
        expected.append(1.5 * median if len(taken) >= 2 else math.inf)
        taken += [norm] if norm <= expected[-1] else []
    assert limits == pytest.approx(expected) and norms[5] > limits[5] and tested.run.state.updates == len(taken)


def test_too_many_skipped_steps_end_the_run_before_another_update(tmp_path: Path) -> None:
    from megatron_videogpt.errors import RunError

    tested, _ = start(tmp_path, max_skipped=2)
    data = samples(broken=(2, 3))
    for _ in range(3):
        tested.launch(data)
    before = [p.detach().clone() for p in tested.run.model[0].parameters()]
    with pytest.raises(RunError, match="step 3: 2 steps in a row were skipped"):
        tested.launch(data)
    assert all(torch.equal(p, q) for p, q in zip(tested.run.model[0].parameters(), before))
    assert tested.run.state.step == 3


def test_a_step_without_a_sample_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of the storage changes nothing but the count of steps: weights, moments, average and gate, and the
    steps after it.
    """
    from megatron_videogpt.train import health

    monkeypatch.setattr(health, "REMEMBERED", 4)
    options = {"spike_factor": 3.0, "max_skipped": 2, "schedule": "constant", "warmup_steps": 0}
    tested, lines = start(tmp_path / "outage", **options)
    undisturbed, _ = start(tmp_path / "whole", **options)
    (tmp_path / "outage").mkdir()
    holed, whole = samples(outage=(4, 5, 6, 8)), samples()
    for _ in range(3):
        tested.launch(holed)
        undisturbed.launch(whole)
    tested.complete()
    before, norms = tested.run.session.everything(), list(tested.gates[0].norms)
    for _ in range(3):
        tested.launch(holed)
    tested.complete()
    for mine, kept in zip(tested.run.session.everything(), before, strict=True):
        assert torch.equal(mine, kept)
    assert (tested.gates[0].norms, tested.gates[0].skipped, tested.run.state.updates, tested.run.state.step) == (
        norms,
        0,
        3,
        6,
    ) and min(norms) > 0
    assert "loss" not in lines[-1][1] and lines[-1][1]["grad_norm"] == 0 and lines[-1][1]["skipped_steps"] == 3
    # Healthy steps after it are taken, and are those that would have come without it.
    for _ in range(4):
        tested.launch(holed)
    for _ in range(3):
        undisturbed.launch(whole)
    tested.complete()
    undisturbed.complete()
    for mine, expected in zip(tested.run.session.everything(), undisturbed.run.session.everything(), strict=True):
        assert torch.equal(mine, expected)
    recorded = [json.loads(line) for line in (tmp_path / "outage" / "skipped.jsonl").read_text().splitlines()]
    assert recorded == [
        {"step": n, "grad_norm": 0.0, "reason": "none of its samples could be read", "samples": []}
        for n in (4, 5, 6, 8)
    ]
    assert "step 4 skipped on all ranks: none of its samples could be read" in caplog.text


@pytest.mark.parametrize("kind", [KeyError, ValueError, UserError])
def test_nothing_is_lost_when_reading_fails(tmp_path: Path, kind: type[Exception]) -> None:
    from megatron_videogpt.train.feed import read_with_status

    def fail() -> Any:
        raise kind("no more videos")

    tested, lines = start(tmp_path, max_skipped=5)
    group, data = tested.run.control, samples(broken=(2,))
    tested.launch(data)
    tested.launch(read_with_status(lambda: next(data), group, group, "reading the data of step 2") for _ in range(1))
    with pytest.raises(kind, match="no more videos"):
        tested.launch(read_with_status(fail, group, group, "reading the data of step 3") for _ in range(1))
    # The step before was skipped, which all ranks record together.
    assert [step for step, _ in lines] == [1, 2] and '"step": 2' in (tmp_path / "skipped.jsonl").read_text()


def test_rejected_samples_are_counted_and_change_no_step(tmp_path: Path) -> None:
    whole, lines = start(tmp_path, every=2)
    holed, others = start(tmp_path, every=2, max_skipped=5)
    first, second = samples(), samples(lost=(3, 4, 6))
    for _ in range(5):
        whole.launch(first)
        holed.launch(second)
    whole.complete()
    holed.complete()
    for (step, line), (number, other) in zip(lines, others):
        assert (
            step == number
            and line["loss"] == pytest.approx(other["loss"], rel=1e-6)
            and line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        )
        assert not [name for name in line if name.startswith("rejected")]
    # None until there is one; then all since the run began.
    assert [other.get("rejected/truncated") for _, other in others] == [None, 2.0] and len(others) == 2
    holed.launch(second)
    holed.flush()
    assert holed.run.state.rejected == {"truncated": 3} and others[-1][1]["rejected/truncated"] == 3
    assert [name for _, other in others for name in other if name.startswith("rejected/")] == ["rejected/truncated"] * 2
