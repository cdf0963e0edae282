"""Memory, communication, bubble and plans against hand counts, simulation and exhaustive search."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict, load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.objective.next_clip.work import NextClipWork, clip_work
from megatron_videogpt.objective.work import Work
from megatron_videogpt.plan.communication import inside_node, traffic
from megatron_videogpt.plan.estimate import longest_row, objective_work, rank_parameters
from megatron_videogpt.plan.memory import RESERVE, pipeline_memory
from megatron_videogpt.plan.planner import (
    bubble,
    device_of,
    layouts,
    plan_of,
    propose,
    rank_seconds,
    run_days,
    speed_of,
    step_time,
)
from megatron_videogpt.plan.recompute import least_recompute, with_policy

CHANNELS = 4
WORK = clip_work((2, 2, 2), 64)
STAGE4 = Path(__file__).resolve().parents[2] / "examples" / "videogpt" / "stage4.toml"
STAGE4_WORK = NextClipWork(16, 80, (2, 80), (1.0, 1.0)).expected((192, 320))


def small(precision: str = "fp32", layers: int = 4, batch: int = 8, ema: float = 0.0, **parallel: object) -> Config:
    return config_from_dict(
        {
            "model": {"num_layers": layers, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4},
            "parallel": parallel,
            "optimizer": {"ema_decay": ema},
            "train": {"precision": precision, "global_batch_size": batch},
        }
    )


def simulated(times: tuple[float, ...], count: int) -> float:
    """Makespan of one-forward-one-backward with a third of each rank's time in the forward pass, event by event."""
    ranks = len(times)
    orders = []
    for rank in range(ranks):
        warm = min(ranks - rank - 1, count)
        steady = [(kind, n) for n in range(count - warm) for kind in ("F", "B")]
        steady = [(kind, n + warm if kind == "F" else n) for kind, n in steady]
        orders.append([("F", n) for n in range(warm)] + steady + [("B", n) for n in range(count - warm, count)])
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * ranks
    while any(orders):
        for rank, order in enumerate(orders):
            if not order:
                continue
            kind, number = order[0]
            needs = [("F", rank - 1, number)] if kind == "F" else [("F", rank, number), ("B", rank + 1, number)]
            needs = [need for need in needs if 0 <= need[1] < ranks]
            if all(need in done for need in needs):
                order.pop(0)
                start = max([clock[rank], *(done[need] for need in needs)])
                clock[rank] = done[kind, rank, number] = start + times[rank] * (1 / 3 if kind == "F" else 2 / 3)
    return max(clock)


@pytest.mark.parametrize("times", [(1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (1.0, 1.2, 1.2, 1.0), (0.5, 1.0, 1.0, 0.9)])
@pytest.mark.parametrize("count", [4, 8, 16])
def test_the_bubble_is_the_simulated_schedules(times: tuple[float, ...], count: int) -> None:
    work = count * sum(times) / len(times)
    assert 1 + bubble(times, 1, count) == pytest.approx(simulated(times, count) / work, rel=0.05)
    if len(set(times)) == 1:
        assert bubble(times, 1, count) == pytest.approx((len(times) - 1) / count)
        assert bubble(times, 2, count) == pytest.approx((len(times) - 1) / (2 * count))


def test_communication_by_hand() -> None:
    wide, layers, tokens, scored = 64, 4, 100, 54
    row = Work(tokens, 0, scored)

    def sent(world: int, **parallel: object) -> dict[tuple[str, str], tuple[float, float]]:
        return {
            (item.axis, item.what): (item.calls, item.size) for item in traffic(small(**parallel), CHANNELS, world, row)
        }

    stream, count = 4 * tokens * wide, 8
    # Two sums forward and two backward per layer, of which the last layer needs three for scored rows only; an
    # all-reduce over two ranks sends the tensor once.
    whole = 4 * layers - 3 + 3 * scored / tokens
    assert sent(2, tensor=2) == {("TP", "all-reduce"): (4 * layers * count, pytest.approx(whole * count * stream))}
    shared = sent(2, tensor=2, sequence=True, recompute="full")
    assert shared["TP", "all-gather"] == ((8 * layers + 2) * count, (8 * layers + 2) * count * stream / 2)
    assert shared["TP", "reduce-scatter"] == (6 * layers * count, 6 * layers * count * stream / 2)
    # A rank's half of the tokens, half of which stays.
    context = sent(2, context=2)
    assert context["CP", "all-to-all of q, k, v"] == (2 * layers * count, 2 * layers * count * 3 * stream / 4)
    assert context["CP", "all-to-all of the output"] == (2 * layers * count, 2 * layers * count * stream / 4)
    assert sent(2, pipeline=2)["PP", "send"] == (count, count * stream)
    # Of stages 0 and 2, two send forward and one back; half of the micro-batches.
    assert sent(4, pipeline=2, virtual_pipeline=2)["PP", "send"] == (3 * count / 2, 3 * count / 2 * stream)
    held = rank_parameters(small(), CHANNELS)
    data = sent(4)
    assert data["DP", "reduce-scatter of gradients"] == (1, 4 * held * 3 / 4)
    assert data["DP", "all-gather of parameters"] == (1, 4 * held * 3 / 4)


def test_groups_share_a_node_when_their_span_does() -> None:
    config = small(tensor=2, context=2, pipeline=2)
    assert [inside_node(config, 16, axis) for axis in ("TP", "CP", "DP", "PP")] == [True, True, True, False]
    assert [inside_node(config, 8, axis) for axis in ("TP", "CP", "DP", "PP")] == [True] * 4
    assert not inside_node(config, 32, "DP")


def test_stage_times_add_up_to_the_models_work() -> None:
    config = small(layers=5, pipeline=2)
    times = rank_seconds(config, CHANNELS, WORK, device_of(config))
    alone = rank_seconds(small(layers=5), CHANNELS, WORK, device_of(config))
    assert sum(times) == pytest.approx(alone[0], rel=0.05)
    assert times[1] > times[0]


def test_proposals_are_the_exhaustive_searchs() -> None:
    config = small(batch=16, layers=4)
    work, limit = NextClipWork(16, 16, (16, 16), (1.0, 1.0)).expected((64, 64)), 9e6
    found = propose(config, CHANNELS, 8, work, limit)
    every = []
    for layout in layouts(config, 8):
        longest = longest_row(layout)
        chosen = least_recompute(layout, 8, CHANNELS, longest, limit)
        if not find_problems(layout, 8) and chosen is not None:
            every.append(plan_of(chosen, CHANNELS, 8, work, longest, device_of(config)))
    best: dict[tuple[int, ...], float] = {}
    for plan in every:
        key = (plan.config.parallel.tensor, plan.config.parallel.context, plan.config.parallel.pipeline)
        best[key] = min(plan.time.total, best.get(key, plan.time.total))
    assert [plan.time.total for plan in found] == sorted(best.values())[:5]
    assert len({plan.config.parallel.recompute for plan in every}) > 1 and len(every) > len(found)
    for plan in found:
        assert plan.memory.total <= limit * (1 - RESERVE)


def test_stage_4_on_320_devices() -> None:
    config = load_config(STAGE4)
    work = objective_work(config).expected((192, 320))
    plans = propose(config, CHANNELS, 320, work, 80e9, frame=(192, 320))
    assert len(plans) == 5
    for plan in plans:
        pasted = load_config(STAGE4, plan.overrides)
        assert not find_problems(pasted, 320)
        assert pasted == plan.config
        assert max(entry.total for entry in pipeline_memory(pasted, CHANNELS, 320, Work(38_478, 0, 80 * 240))) < 80e9
        assert 0.2 < plan.mfu < 0.65


def test_more_recomputation_and_slower_links_take_longer() -> None:
    config, work = load_config(STAGE4), STAGE4_WORK
    times = [
        step_time(with_policy(config, policy), CHANNELS, 320, work, device_of(config)).total
        for policy in ("none", "selective", "mlp", "full")
    ]
    assert times == sorted(times) and times[3] / times[0] == pytest.approx(4 / 3, rel=0.05)
    overlapped = step_time(config, CHANNELS, 320, work, device_of(config))
    exposed = replace(config, parallel=replace(config.parallel, overlap_grad_reduce=False, overlap_param_gather=False))
    assert overlapped.communication < step_time(exposed, CHANNELS, 320, work, device_of(config)).communication


def test_days_follow_the_given_the_measured_and_the_assumed_speed(tmp_path: Path) -> None:
    config = replace(load_config(STAGE4), train=replace(load_config(STAGE4).train, output=str(tmp_path)))
    work = STAGE4_WORK
    assumed = speed_of(config, None)
    assert (assumed.mfu, assumed.flops) == (0.4, 0.4 * 989e12) and "assumed" in assumed.source
    # 21.7 + 10.7 GFLOP per token at 16:9; 20,000 steps of 320 samples at 1.2 EFLOP each on 320 devices.
    per_step = run_days(config, 320, work, assumed) * 86400 / 20_000
    flops = (6 * 3_624_075_264 * work.tokens + 12 * work.pairs * 3072 * 32) * 320
    assert per_step * 320 * assumed.flops == pytest.approx(flops, rel=1e-3)
    lines = [{"step": n, "mfu": mfu, "tflops_per_device": 500 * mfu} for n, mfu in enumerate((0.1, 0.3, 0.5))]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 3, "validation_loss": 1.0}])
    )
    measured = speed_of(config, None)
    assert (measured.mfu, measured.flops) == (0.3, 150e12) and "measured" in measured.source
    assert speed_of(config, 0.2).flops == pytest.approx(0.2 * 989e12)


def test_the_layouts_cover_every_axis() -> None:
    seen = [layout.parallel for layout in layouts(small(batch=16, layers=8), 8)]
    for name in ("tensor", "sequence", "context", "pipeline", "virtual_pipeline"):
        assert len({getattr(layout, name) for layout in seen}) > 1, name
    # Every product of sizes that divides 8 devices and, without PP, 4 heads.
    sizes = {(layout.tensor, layout.context, layout.pipeline) for layout in seen}
    assert sizes == {
        (t, c, p) for t, c, p in itertools.product((1, 2, 4, 8), repeat=3) if 4 % (t * c) == 0 and 8 % (t * c * p) == 0
    }


def test_check_prints_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", str(STAGE4), "--gpus", "320", "--memory-gb", "64", "--mfu", "0.5", "--frame", "192x320"]
    assert (
        cli.main(
            [*argv, "parallel.pipeline=4", "parallel.tensor=2", "parallel.sequence=true", "parallel.recompute=auto"]
        )
        == 0
    )
    out = capsys.readouterr().out
    for expected in (
        "38,478",
        "this run",
        "selective",
        "attended pairs only",
        "reduce-scatter",
        "MFU 0.50 (as given",
        "fit 64 GB with 8% to spare",
        "(auto)",
    ):
        assert expected in out, expected
    # Eight micro-batches on four even stages, but for the ends.
    (line,) = [line for line in out.splitlines() if "pipeline bubble" in line]
    assert float(line.split()[4].rstrip("%")) == pytest.approx(100 * 3 / 8, abs=0.5)
    pasted = next(line for line in out.splitlines() if line.startswith("1: "))[3:].split()
    assert not find_problems(load_config(STAGE4, pasted), 320)


@pytest.mark.parametrize("wrong", [["--memory-gb", "0"], ["--mfu", "much"], ["--frame", "320"], ["--gpus", "1.5"]])
def test_wrong_numbers_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", str(STAGE4), *wrong])
    assert stopped.value.code == 2
    assert f"argument {wrong[0]}: '{wrong[1]}': must be" in capsys.readouterr().err


def test_a_plan_that_does_not_fit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(STAGE4), "--gpus", "1", "--memory-gb", "40", "train.global_batch_size=1"]) == 0
    assert "No layout fits devices of 40 GB with rows of 63,918 tokens" in capsys.readouterr().out
