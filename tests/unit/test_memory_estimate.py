"""Estimated memory, and the least recomputation that fits, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_videogpt.config.derived import recomputed_layers
from megatron_videogpt.plan import recompute
from megatron_videogpt.plan.estimate import longest_row, rank_parameters
from megatron_videogpt.plan.memory import RESERVE, in_flight, layer_bytes, rank_memory
from megatron_videogpt.plan.recompute import least_recompute, recompute_choices, resolve_recompute, with_policy

from .test_planner import CHANNELS, WORK, small


def test_memory_of_states_is_bytes_per_parameter() -> None:
    fp32 = small()
    count = rank_parameters(fp32, CHANNELS)
    alone = rank_memory(fp32, CHANNELS, 1, WORK)
    assert (alone.parameters, alone.gradients, alone.optimizer, alone.ema) == (4 * count, 4 * count, 8 * count, 0)
    bf16 = rank_memory(small("bf16", ema=0.99), CHANNELS, 4, WORK)
    assert (bf16.parameters, bf16.gradients, bf16.optimizer, bf16.ema) == (
        2 * count,
        4 * count,
        12 * count / 4,
        4 * count / 4,
    )
    # The optimizer's state is sharded over data and context parallel ranks together.
    assert rank_memory(small("bf16", context=2), CHANNELS, 4, WORK).optimizer == 12 * count / 4
    assert alone.total == alone.states + alone.activations + alone.working


def test_one_layers_activations_by_hand() -> None:
    # D = 64, F = 128, 4 heads of 16, t = 100 tokens in float32: see the list in docs/planner.md.
    layer = layer_bytes(small(), 100)
    t, wide, inner, statistics = 400, 64, 128, 4
    norms, attention = 2 * (2 * wide + 1), 4 * wide + statistics
    assert layer.kept("none") == t * (norms + attention + 3 * inner)
    assert layer.kept("selective") == t * (2 * wide + attention + 2 * inner)
    assert layer.kept("mlp") == t * (2 * wide + attention)
    assert layer.kept("full") == t * wide
    # Everything is cut by context parallelism, but the output is kept on both sides of the exchange.
    halved = layer_bytes(small(context=2), 100)
    assert halved.kept("none") == t / 2 * (norms + attention + wide + 3 * inner)
    sharded = layer_bytes(small(tensor=2, sequence=True), 100)
    assert sharded.kept("none") == pytest.approx(layer.kept("none") / 2)


@pytest.mark.parametrize(
    ("pipeline", "chunks", "count"), [(1, 1, 3), (4, 1, 2), (4, 1, 9), (2, 2, 4), (4, 2, 8), (4, 4, 4)]
)
def test_micro_batches_in_flight_are_megatrons(pipeline: int, chunks: int, count: int) -> None:
    for rank in range(pipeline):
        most = max(sum(moment) for moment in in_flight(pipeline, chunks, rank, count))
        warm = pipeline - rank - 1 if chunks == 1 else 2 * (pipeline - rank - 1) + (chunks - 1) * pipeline
        assert most == min(count * chunks, warm + 1)


def test_recomputed_layers_lead_and_memory_falls_with_them() -> None:
    layout = small(layers=8, pipeline=2, virtual_pipeline=2, recompute="full", recompute_layers=3).parallel
    assert recomputed_layers(layout, (2, 2)) == (2, 1)
    assert recomputed_layers(replace(layout, recompute_layers=0), (2, 2)) == (2, 2)
    assert recomputed_layers(replace(layout, recompute="selective", recompute_layers=0), (2, 2)) == (0, 0)
    kept = [rank_memory(with_policy(small(), "full", count), CHANNELS, 1, WORK).activations for count in (1, 2, 3, 4)]
    assert kept == sorted(kept, reverse=True)


def test_auto_chooses_the_least_recomputation_that_fits() -> None:
    config = small(recompute="auto")
    choices = recompute_choices(config, CHANNELS, WORK)
    needs = [rank_memory(choice, CHANNELS, 1, WORK).total for choice in choices]
    seen = set()
    for limit in [need * factor for need in needs for factor in (0.999, 1.001)]:
        chosen = least_recompute(config, 1, CHANNELS, WORK, limit / (1 - RESERVE))
        fitting = [choice for choice, need in zip(choices, needs) if need <= limit]
        assert chosen == (fitting[0] if fitting else None)
        seen.add(chosen and chosen.parallel.recompute)
    assert seen == {"none", "selective", "mlp", "full", None}


def test_auto_that_cannot_fit_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(recompute="auto")
    assert resolve_recompute(config, 1, CHANNELS, 80e9).parallel.recompute == "none"
    assert resolve_recompute(small(recompute="mlp"), 1, CHANNELS, 1.0) == small(recompute="mlp")
    with pytest.raises(
        ValueError, match=r"^parallel\.recompute = auto: rows of [\d,]+ tokens need [\d.]+ GB even with full"
    ) as raised:
        resolve_recompute(config, 1, CHANNELS, 1e6)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(recompute, "RESERVE", 0.0)
    need = rank_memory(with_policy(config, "full"), CHANNELS, 1, longest_row(config)).total
    assert resolve_recompute(config, 1, CHANNELS, need * 1.0001).parallel.recompute == "full"
