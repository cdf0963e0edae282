"""A run of two replicas from the inside: what is logged when they see different things, float64 anywhere, and when
garbage is collected.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .launch import REPOSITORY, torchrun

WORKER = REPOSITORY / "tests" / "parallel" / "run_worker.py"
MEMORY = 10**17 + 1


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    torchrun(2, str(WORKER), str(REPOSITORY / "tests" / "parallel" / "tiny.toml"), str(folder))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_numbers_of_the_log_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["lines"] for rank in ranks)
    # One row of 42 tokens on rank 0, three on rank 1; then a row and two of 40 tokens, blanks; then four of these; then
    # a row each.
    for line, other, tokens in zip(first, second, (168, 122, 160, 84), strict=True):
        assert line["tokens_per_second"] * line["step_time"] == pytest.approx(tokens, rel=1e-9)
        assert other["tokens_per_second"] * other["step_time"] == pytest.approx(tokens, rel=1e-9)
        assert line["memory_peak_gib"] == other["memory_peak_gib"] == (MEMORY + 1) / 2**30
        assert line["tflops_per_device"] * line["step_time"] == pytest.approx(
            other["tflops_per_device"] * other["step_time"], rel=1e-9
        )
    assert [line.get("loss") for line in first] == [line.get("loss") for line in second]
    # Rank 0 had its data at once, and tells how long rank 1 waited.
    assert first[0]["data_wait"] == second[0]["data_wait"] >= 0.1


def test_a_step_is_taken_where_any_rank_has_a_sample_and_only_there(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        taken = [before != after for before, after in zip(rank["sums"], rank["sums"][1:])]
        assert taken == [True, False, True] and (rank["updates"], rank["skipped"], len(rank["norms"])) == (3, 0, 3)
        assert ["loss" in line for line in rank["lines"]] == [True, True, False, True]
    assert ranks[0]["norms"] == ranks[1]["norms"]


def test_no_float64_reaches_a_device_or_a_collective(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["doubles"] == [] and rank["collectives"] > 100


def test_all_ranks_collect_garbage_after_the_same_steps(ranks: list[dict[str, Any]]) -> None:
    assert [rank["collected"] for rank in ranks] == [[4, 8], [4, 8]]
