"""Benchmarks that run tiny: sampling of every objective, attention of the factorised network, the loss in chunks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parallel.launch import interpreter, run


def test_sampling_with_and_without_a_cache(tmp_path: Path) -> None:
    done = run(
        interpreter("tools/benchmark_sampling.py", "--quick", "--kv-heads", 1, "--json", tmp_path / "sampling.json")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "sampling.json").read_text())
    assert [(row["history"], row["clips"]) for row in result["rollouts"]] == [(6, [2, 2]), (2, [2]), (6, [2])]
    for row in result["rollouts"]:
        assert row["wall_ratio"] == row["uncached"]["wall"] / row["cached"]["wall"] and row["error"] < 1e-5
        assert row["uncached"]["remember"] < row["cached"]["remember"] and min(row["peak"].values()) >= 0
        for way in ("uncached", "cached"):
            # Two steps a clip.
            assert 0 < row[way]["remember"] + 2 * len(row["clips"]) * row[way]["step"] < row[way]["wall"]
    assert "2 heads (1 key-value)" in done.stdout and done.stdout.count("\n| ") == 5


def test_sampling_blocks_of_tokens(tmp_path: Path) -> None:
    words = ("--objective", "next_block_prediction", "--quick", "--json", tmp_path / "blocks.json")
    done = run(interpreter("tools/benchmark_sampling.py", *words))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "blocks.json").read_text())
    assert [(one["block"], one["steps"]) for one in result["blocks"]] == [(4, 4), (1, 16)]
    for one in result["blocks"]:
        parts = [one[part] for part in ("encoding", "passes", "noise", "drawing", "decoding")]
        assert min(parts) > 0 and one["whole"] == pytest.approx(sum(parts))
    assert [one["history"] for one in result["lengths"]] == [1, 2] and all(
        one["error"] < 1e-5 for one in result["lengths"]
    )


def test_a_rollout_over_a_window_that_moves(tmp_path: Path) -> None:
    tool = "tools/benchmark_sampling.py", "--objective", "frame_prompt_diffusion"
    files = "--json", tmp_path / "rollout.json", "--plot", tmp_path / "rollout.png"
    done = run(interpreter(*tool, "--quick", "--steps", 1, *files))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "rollout.json").read_text())["networks"]
    assert list(result) == ["decoder", "factorised"] and (tmp_path / "rollout.png").stat().st_size > 1000
    for ways in result.values():
        assert list(ways) == ["uncached", "recompute", "keep"]
        for name, one in ways.items():
            assert one["wall_ratio"] == ways["uncached"]["wall"] / one["wall"] and one["difference"] < 1e-4
            # From the second chunk on the window is full.
            assert (
                len(one["bytes"]) == 3
                and one["bytes"][1] == one["bytes"][2]
                and bool(one["bytes"][0]) == (name != "uncached")
            )
    assert done.stdout.count("\n| ") == 7
    wrong = run(interpreter(*tool, "--chunks", 1))
    assert wrong.returncode == 2 and "--chunks 1: must be at least 2" in wrong.stderr


def test_attention_of_the_factorised_network() -> None:
    sizes = "--prompt", 4, "--chunk", 2, "--patches", 6, "--heads", 2, "--head-dim", 8
    done = run(interpreter("tools/benchmark_attention.py", "factorised", *sizes, "--repeat", 2))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["in space", "in time", "to the prompt", "all three"]
    # The three ways are the same attention.
    assert all(float(row[5]) < 1e-5 for row in rows[:3])
    wrong = run(interpreter("tools/benchmark_attention.py", "factorised", "--prompt", 2))
    assert wrong.returncode == 2 and "--prompt 2: must be at least --enhance 3" in wrong.stderr


def test_the_loss_a_chunk_of_rows_at_a_time() -> None:
    done = run(interpreter("tools/benchmark_loss.py", "--rows", 64, "--words", 512, "--width", 16, "--repeat", 2))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| a chunk at a time | " in done.stdout and "| all rows at once | 0 | " in done.stdout
    assert float(done.stdout.split("gradients to ")[1].split()[0]) < 1e-5
