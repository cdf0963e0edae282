"""What `check --data` says about padding and balance, against counting by hand."""

from __future__ import annotations

import io
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.geometry import CodecGeometry
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.packing import StepPlanner
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.model.flops import training_flops
from megatron_videogpt.objective.build import work_of
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.plan.balance import DealingStatistics, in_order, measure
from megatron_videogpt.plan.data_report import advice, print_data_report
from tools import benchmark_packing

CONFIG = Config(
    data=DataConfig(frames=12, clips=(1, 12), physics=PhysicsConfig(size=64)), train=TrainConfig(global_batch_size=24)
)


def planner(config: Config, ranks: int) -> StepPlanner:
    codec = CodecGeometry(16, 8, 1)
    return StepPlanner(open_source(config.data, codec).train, 0, config, work_of(config, codec), ranks)


def test_naive_dealing_by_hand() -> None:
    """Six samples on two ranks, rows of at most 60 tokens in lengths of 10: 30+20 | 50 against 10+10+10, and a blank
    row beside the second.
    """
    plans = planner(CONFIG, 2).plans(0).take(range(6))
    step = in_order(plans, np.array([30, 20, 50, 10, 10, 10]), 2, 60, np.arange(10, 70, 10))
    assert [[(row.samples, row.length) for row in rows] for rows in step.rows] == [
        [((0, 1), 50), ((2,), 50)],
        [((3, 4, 5), 30), ((), 10)],
    ]


def test_what_is_measured_is_what_clips_cost() -> None:
    """One sample a row, in order: the cost of a rank is the FLOPs of its clips, from clip lists and closed forms."""
    configured, naive = measure(planner(CONFIG, 4), range(3))
    for step in range(3):
        plans = planner(CONFIG, 4).plans(24 * step)
        works = [clip_work(plan.clips, 16) for plan in plans]
        weights = work_of(CONFIG, CodecGeometry(16, 8, 1)).weights
        flops = [training_flops(CONFIG.model, weights, work.tokens, work.pairs) for work in works]
        sums = [sum(flops[6 * rank : 6 * rank + 6]) for rank in range(4)]
        assert configured.imbalance[step] == pytest.approx(max(sums) / statistics.mean(sums)) == naive.imbalance[step]
        assert configured.tokens[step] == sum(work.tokens for work in works) == configured.padded[step]
        rows = [
            max(flops[6 * rank : 6 * rank + 6]) / statistics.mean(flops[6 * rank : 6 * rank + 6]) for rank in range(4)
        ]
        assert configured.row_imbalance[step] == pytest.approx(statistics.mean(rows))
    assert configured.padding == 0 and configured.bound == [1.0] * 3
    # Alone on its rank, the longest sample is the bound, and naive dealing reaches it.
    alone, _ = measure(planner(CONFIG, 24), range(3))
    assert alone.imbalance == pytest.approx(alone.bound) and min(alone.bound) > 1.05


def test_packing_balances_what_naive_dealing_does_not() -> None:
    packed = replace(
        CONFIG, data=replace(CONFIG.data, pack_tokens=1000), train=replace(CONFIG.train, global_batch_size=80)
    )
    configured, naive = measure(planner(packed, 4), range(5))
    assert max(configured.imbalance) < 1.03 < statistics.mean(naive.imbalance) and configured.tokens == naive.tokens
    assert len(configured.lengths) <= 64 and 0 < configured.padding < 0.03


@pytest.mark.parametrize(
    ("changes", "numbers", "words"),
    [
        ({}, (1.01, 1.0, 0.0), "nothing to change"),
        ({}, (1.5, 1.0, 0.0), "data.pack_tokens=700"),
        ({"pack_tokens": 900}, (1.01, 1.0, 0.05), "data.row_lengths=128"),
        ({"pack_tokens": 900}, (2.0, 1.9, 0.0), "data.cost_buckets=16"),
        ({"pack_tokens": 900, "cost_buckets": 16}, (1.2, 1.1, 0.0), "data.cost_buckets=64"),
        ({"pack_tokens": 900}, (1.2, 1.0, 0.0), "larger train.global_batch_size"),
    ],
)
def test_advice_is_for_what_is_wrong(changes: dict, numbers: tuple[float, float, float], words: str) -> None:
    imbalance, bound, padding = numbers
    dealt = DealingStatistics(tokens=[1000], padded=[round(1000 / (1 - padding))], imbalance=[imbalance], bound=[bound])
    text = advice(replace(CONFIG, data=replace(CONFIG.data, **changes)), dealt, 700)
    assert words in text and "\n" not in text and ("nothing" in text) == (numbers[0] < 1.03 and not padding)


def test_report_of_physics(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The mean of tokens is that of the first fifty steps' clips; the command prints the same tables."""
    out = io.StringIO()
    print_data_report(CONFIG, 2, Console(file=out, width=120))
    plans = planner(CONFIG, 2).split.plans(0, range(1200))
    mean = np.mean([clip_work(plan.clips, 16).tokens for plan in plans])
    assert f"{mean:,.0f}" in next(line for line in out.getvalue().splitlines() if "tokens " in line)
    for words in (
        "Sequences, 1,200 samples",
        "64x64 100.0%",
        "Rows of 50 steps: 24 samples on 2 data parallel ranks",
        "advice: ",
    ):
        assert words in out.getvalue()
    (tmp_path / "run.toml").write_text("[data]\nframes = 12\nclips = [1, 12]\n[train]\nglobal_batch_size = 24\n")
    assert main(["check", str(tmp_path / "run.toml"), "--data", "--gpus", "2", "data.pack_tokens=100"]) == 2
    assert "data.pack_tokens=100: must hold the longest sample of this data, 414 tokens" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "run.toml"), "--data", "--gpus", "2"]) == 0
    assert f"{mean:,.0f}" in capsys.readouterr().out


def test_the_bars_of_packing_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """tools/benchmark_packing.py with fewer videos and steps: durations as published, padding under 3 %, imbalance
    under 1.03, naive dealing far from it.
    """
    monkeypatch.setattr(
        sys, "argv", "benchmark_packing --entries 20000 --stages 4 --ranks 64 --steps 4 --buckets 4".split()
    )
    benchmark_packing.main()
    out = capsys.readouterr().out
    assert "20,000 videos of 8.5 s" in out
    rows = {
        cells[4] if cells[3] == "10" else f"{cells[4]} alone": cells
        for cells in ([c.strip() for c in line.split("|")] for line in out.splitlines())
        if "64" in cells[2:3]
    }
    assert list(rows) == ["naive", "by cost", "naive alone", "by cost alone", "cost_buckets=4 alone"]
    padding, worst, bound = (
        {name: float(cells[place].rstrip("%")) for name, cells in rows.items()} for place in (5, 9, 10)
    )
    assert padding["by cost"] < 3 and worst["by cost"] < 1.03 < 1.2 < worst["naive"] and bound["by cost"] == 1
    # One sample a rank cannot be balanced; buckets of similar cost can.
    mean = {name: float(cells[8]) for name, cells in rows.items()}
    assert (
        mean["by cost alone"]
        == mean["naive alone"]
        >= bound["by cost alone"]
        > 2
        > mean["cost_buckets=4 alone"]
        >= bound["cost_buckets=4 alone"]
    )
    videos = benchmark_packing.SyntheticVideos(20_000).entries
    assert (videos["frames"] / videos["fps"]).mean() == pytest.approx(8.5, rel=0.01)
