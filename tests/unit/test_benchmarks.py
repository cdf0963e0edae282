"""What the benchmark tools measure: masks against their rules, work in closed form, memory and tile lists; the GPU
check's bars, limits and refusals.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from megatron_videogpt.attention import attend, groups
from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.config.load import load_config
from megatron_videogpt.model.flops import training_flops
from megatron_videogpt.objective.build import work_of
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.sequence.intervals import dense_mask
from megatron_videogpt.sequence.layout import layout, training_shape
from tests.parallel.launch import interpreter, run
from tools.measuring import masks
from tools.measuring.clock import attempt, in_turns, peak_memory
from tools.measuring.kernels import building_clock, dense_attend, forget, forward_backward, kernel, obstacle_of
from tools.measuring.report import Case, Result, case_table, markdown, plot, summary_tables

ROOT = Path(__file__).resolve().parents[2]
GRID = (2, 3)


@pytest.mark.parametrize("name", masks.STAGES)
def test_stage_masks_are_one_training_sample_of_the_stage(name: str) -> None:
    mask = masks.build(name, None, GRID, seed=3, multiple=16)
    data = load_config(ROOT / "examples" / "videogpt" / f"{name[:6]}.toml").data
    (clips,) = mask.clips
    assert sum(clips) == data.frames and data.clips[0] <= len(clips) <= data.clips[1]
    assert (mask.tokens, mask.pairs) == (clip_work(clips, 6).tokens, clip_work(clips, 6).pairs)
    assert len(mask.intervals) % 16 == 0 and torch.equal(
        mask.intervals[: mask.tokens], layout(training_shape(clips, GRID)).intervals
    )
    assert name != "stage4-long" or clips[-1] == 1


def test_the_longest_row_of_stage_4() -> None:
    clips = masks.split_of("stage4-long").draw(random.Random(0))
    assert masks.sample_tokens(clips, (12, 20)) == 38_478


@pytest.mark.parametrize("length", [100, 700, 3000])
@pytest.mark.parametrize("name", ["stage1", "stage4", "stage4-long", "split"])
def test_rows_hold_as_many_frames_as_fit(name: str, length: int) -> None:
    mask = masks.build(name, length, GRID, seed=5, split=masks.Split(9, (2, 9)))
    assert (
        mask.tokens
        == sum(masks.sample_tokens(clips, GRID) for clips in mask.clips)
        == sum(clip_work(clips, 6).tokens for clips in mask.clips)
    )
    # What is left holds no further sample of two frames, or was filled with one whose clips happen to need less than
    # the most.
    assert length / 3 < mask.tokens <= length
    assert mask.pairs == int(dense_mask(mask.intervals).sum())


def test_plain_masks_follow_their_rules() -> None:
    length = 40
    rows, keys = torch.arange(length)[:, None], torch.arange(length)
    rules = {
        "nbp": keys // 3 <= rows // 3,
        "frame-causal": keys // 6 <= rows // 6,
        "causal": keys <= rows,
        "full": (keys >= 0) & (rows >= 0),
    }
    for name, rule in rules.items():
        mask = masks.build(name, length, GRID, seed=0)
        assert torch.equal(dense_mask(mask.intervals), rule) and mask.density == pytest.approx(
            float(rule.double().mean())
        ), name


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match="stage9.*stage1, stage2"):
        masks.build("stage9", None, GRID, 0)
    with pytest.raises(ValueError, match="10 tokens hold no sample of two frames of 2x3 patches"):
        masks.build("stage4", 10, GRID, 0)


def inputs(rows: int, heads: int = 2, width: int = 16) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    return [torch.randn(rows, heads, width, generator=noise).requires_grad_(number < 3) for number in range(4)]


@pytest.mark.parametrize("name", ["sdpa", "ranged", "ranged/fixed", "dense"])
def test_what_is_timed_is_attention_under_the_mask(name: str) -> None:
    mask, (q, k, v, _) = masks.build("stage1", None, GRID, 0), inputs(31 * 8)
    expected = attend("reference", q, k, v, mask.intervals, 0.25)
    found = (
        dense_attend(q, k, v, mask.intervals, 0.25) if name == "dense" else kernel(name, mask.intervals, 0.25)(q, k, v)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    everything = torch.tensor([[0, len(q), 0, 0]] * len(q), dtype=torch.int32)
    torch.testing.assert_close(
        kernel("sdpa-full", mask.intervals, 0.25)(q, k, v),
        attend("reference", q, k, v, everything, 0.25),
        rtol=1e-5,
        atol=1e-5,
    )


def test_backends_that_cannot_run_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = masks.build("causal", 64, GRID, 0).intervals
    assert "runs on CUDA only" in obstacle_of("triton/fixed", mask, "cpu", torch.float32, 96)
    assert (
        obstacle_of("ranged", mask, "cpu", torch.float32, 96)
        == obstacle_of("sdpa", mask, "cpu", torch.float32, 96)
        == ""
    )
    monkeypatch.setattr("tools.measuring.kernels.free_memory", lambda device: 64 * 64 * 8 - 1)
    assert "the dense mask needs 0.0 GiB" in obstacle_of("sdpa", mask, "cpu", torch.float32, 96)
    assert attempt(lambda: None) == "" and attempt(lambda: {}["x"]) == "KeyError: 'x'"


def test_tile_lists_are_timed_where_they_are_built() -> None:
    mask, tensors = masks.build("stage1", None, GRID, 0).intervals, inputs(31 * 8)
    before = groups.plan
    with building_clock("cpu") as spent:
        kernel("sdpa", mask, 0.25)(*tensors[:3])
        assert (spent.count, spent.seconds) == (0, 0.0)
        forget()
        forward_backward(kernel("ranged", mask, 0.25), tensors, "cpu")
        first = spent.seconds
        assert spent.count == 1 and first > 0
        # The same mask again is looked up, not planned: planning takes milliseconds.
        forward_backward(kernel("ranged", mask, 0.25), tensors, "cpu")
        assert spent.count == 2
        dense_attend(*tensors[:3], mask, 0.25)
        dense_attend(*tensors[:3], mask, 0.25)
        assert spent.count == 3
    assert groups.plan is before


def test_peak_memory_is_what_a_call_holds() -> None:
    def hold() -> None:
        torch.ones(64 * 2**18).add_(1)

    assert 60 < peak_memory(hold, "cpu") < 100


def test_ways_take_turns() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in ("one", "other")}
    assert list(in_turns(ways, 2)) == [("one", 1), ("other", 2), ("one", 3), ("other", 4)]
    assert order == ["one", "other"] * 2


def test_a_table() -> None:
    assert markdown(("way", "s"), [["a", "1.0"], ["b", ""]]) == "| way | s |\n|---|---|\n| a | 1.0 |\n| b |  |"


def made_up(forward: float, backward: float, name: str = "flash") -> Case:
    case = Case("stage4", 1000, 998, 250_000, heads=2, kv_heads=2, head_dim=50, description="made up")
    case.results = {
        "sdpa": Result(1.0, 3.0, memory=7.0),
        "sdpa-full": Result(1.0, 3.0),
        name: Result(forward, backward, 0.001, 5.0),
        "flex": Result(note="no triton"),
    }
    return case


def test_tables_count_flops_of_attended_pairs(tmp_path: Path) -> None:
    case = made_up(0.5, 0.5)
    assert case.tflops("flash") == pytest.approx((4 * 250_000 * 100 / 0.5e12, 10 * 250_000 * 100 / 0.5e12))
    assert case.tflops("sdpa-full") == pytest.approx((4 * 1e6 * 100 / 1e12, 10 * 1e6 * 100 / 3e12))
    assert "| flash | 500.00 | 0.000 | 500.00 | 0.001 | 1000.00 | 4.00x | 5 | 1.00 |" in case_table(case)
    assert "| flex | not run: no triton |" in case_table(case)
    assert "| stage4 | 998 | 0.251 |" in summary_tables([case, case])
    plot(tmp_path / "plot.png", [case], "title")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.long
def test_a_training_step_of_a_configuration(tmp_path: Path) -> None:
    overrides = [
        "model.patch_size=4",
        "data.size_multiple=32",
        "train.precision=fp32",
        "model.num_layers=2",
        "train.micro_batch_size=2",
        "data.frames=4",
        "data.clips=[2, 4]",
    ]
    config = "examples/videogpt/quickstart.toml"
    command = interpreter(
        "tools/benchmark_step.py",
        config,
        *overrides,
        "--backends",
        "ranged,dense,triton",
        "--steps",
        "2",
        "--warmup",
        "1",
    )
    done = run([*command, "--json", str(tmp_path / "step.json"), "--peak", "0.5"])
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "step.json").read_text())["backends"]
    assert "runs on CUDA only" in result["triton"]["note"] and "| triton | not run: it runs on CUDA only" in done.stdout
    for name in ("ranged", "dense"):
        row = result[name]
        assert len(row["step"]) == 2 and min(*row["step"], *row["forward"], *row["backward"], *row["optimizer"]) > 0
        parts = zip(row["forward"], row["backward"], row["optimizer"])
        assert all(sum(part) <= step for part, step in zip(parts, row["step"]))
        # Two samples of clips that end with one frame: 64x64 pixels are 2x2 patches of 4x4 cells.
        clips = masks.Split(4, (2, 4), last=1).draw(random.Random(0))
        work = clip_work(clips, 4)
        unscored = (work.tokens - work.scored, work.pairs - noisy_pairs(clips))
        loaded = load_config(ROOT / config, overrides)
        flops = training_flops(
            loaded.model,
            work_of(loaded, expected_geometry(loaded.codec)).weights,
            2 * work.tokens,
            2 * work.pairs,
            (2 * unscored[0], 2 * unscored[1]),
        )
        assert row["tokens"] == [2 * work.tokens] * 2 and row["model"] == pytest.approx([flops] * 2, rel=1e-12)
        assert row["mfu"] == pytest.approx(flops / 0.5e12 / (sum(row["step"]) / 2), rel=0.5) and not math.isnan(
            row["memory"]
        )


def noisy_pairs(clips: tuple[int, ...]) -> int:
    """Pairs of the noisy patches of one sample of frames of four patches: all clean tokens of earlier clips, and their
    whole own clip.
    """
    return sum(4 * clip * (6 * sum(clips[:number]) + 6 * clip) for number, clip in enumerate(clips))
