"""Parameter counts against the released model, sequence work against the layout, expectations against enumeration."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_videogpt.codec.geometry import CodecGeometry
from megatron_videogpt.config.derived import stage_layers, typical_frame
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.model.flops import component_parameters, training_flops
from megatron_videogpt.objective.build import work_of
from megatron_videogpt.objective.next_clip.parameters import TABLE
from megatron_videogpt.objective.next_clip.work import NextClipWork, clip_work
from megatron_videogpt.plan.estimate import hardware_flops, objective_work, rank_parameters
from megatron_videogpt.plan.report import in_units
from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask
from megatron_videogpt.sequence.layout import NOISY, NOISY_PATCH, layout, training_shape

NAMES = ("tokens", "pairs", "scored", "scored_pairs")
TINY = ModelConfig(num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4)


def test_parameters_are_the_released_models_with_three_rows_of_the_token_table(reference: Path) -> None:
    released = json.loads((reference / "released_model.json").read_text())
    vocabulary, width = released["keys"]["llm.embed_tokens.weight"]
    counts = component_parameters(TABLE, ModelConfig(), released["in_channels"])
    assert sum(counts.values()) == released["num_parameters"] - (vocabulary - 3) * width
    layers = sum(math.prod(shape) for key, shape in released["keys"].items() if key.startswith("llm.layers."))
    assert counts["decoder.layers"] == layers


def test_parameters_of_the_tiny_reference_model(reference: Path) -> None:
    total = json.loads((reference / "tiny_mha" / "extra.json").read_text())["num_parameters"]
    assert sum(component_parameters(TABLE, TINY, 4).values()) == total - (128 - 3) * 64


def test_parameters_with_fewer_key_value_heads_and_other_channels() -> None:
    # Two of four key/value heads less: 2 * 2 * 16 rows of 64 in each of 2 layers; 4 channels more: 3 projections of 2 *
    # 2 * 4 * 64, and their biases.
    base = sum(component_parameters(TABLE, TINY, 4).values())
    assert sum(component_parameters(TABLE, replace(TINY, num_query_groups=2), 4).values()) == base - 2 * 2 * 2 * 16 * 64
    assert sum(component_parameters(TABLE, TINY, 8).values()) == base + 3 * 16 * 64 + 16


@pytest.mark.parametrize("clips", [(1,), (3,), (1, 1), (1, 2, 3), (4, 1, 1, 2)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_work_is_the_layouts(clips: tuple[int, ...], grid: tuple[int, int]) -> None:
    row = layout(training_shape(clips, grid))
    work = clip_work(clips, grid[0] * grid[1])
    assert (work.tokens, work.pairs) == (len(row), attended_pairs(row.intervals))
    assert work.scored == len(row.rows(NOISY, NOISY_PATCH))
    assert work.pairs == int(dense_mask(row.intervals).sum())
    assert work.scored_pairs == int(dense_mask(row.intervals)[row.rows(NOISY, NOISY_PATCH)].sum())


@pytest.mark.parametrize("clips", [(1, 1), (2, 7), (3, 3), (7, 7), (1, 7)])
def test_expected_work_is_the_mean_over_all_splits_and_the_largest_their_longest(clips: tuple[int, int]) -> None:
    frames, frame = 7, (5, 1)
    means, every = [], []
    for count in range(clips[0], clips[1] + 1):
        cuts = [(0, *cut, frames) for cut in itertools.combinations(range(1, frames), count - 1)]
        works = [clip_work([b - a for a, b in itertools.pairwise(cut)], 5) for cut in cuts]
        means.append([statistics.mean(getattr(work, name) for work in works) for name in NAMES])
        every += works
    closed = NextClipWork(1, frames, clips, (1.0, 1.0))
    expected, largest = closed.expected(frame), closed.largest(frame)
    for name, *values in zip(NAMES, *means):
        assert getattr(expected, name) == pytest.approx(statistics.mean(values), rel=1e-12)
    # Most pairs has a split into two clips, whether or not there may be so few.
    most = clip_work((6, 1), 5) if clips[1] > 1 else every[0]
    assert largest == most and largest.tokens == max(work.tokens for work in every)
    assert largest.pairs >= max(work.pairs for work in every) and (clips[0] > 2 or largest in every)
    kept = [work.tokens / 7 - frames for work in (expected, largest)]
    assert closed.facts(frame, frame) == [
        ("noisy frames", "7.0", "7.0"),
        ("clean frames", f"{kept[0]:.1f}", f"{kept[1]:.1f}"),
        ("patches per frame", "5", "5"),
    ]


def test_the_longest_sequence_of_stage_4_has_159_frame_blocks() -> None:
    # 80 frames of 320x192, last clip one frame, 38,478 tokens.
    assert NextClipWork(16, 80, (2, 80), (1.0, 1.0)).largest((192, 320)).tokens == 38_478
    assert NextClipWork(16, 5, (1, 1), (1.0, 1.0)).largest((32, 47)).tokens == 5 * 6


def test_flops_of_one_layer_by_hand() -> None:
    model = ModelConfig(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
    matrices = 8 * 24 + 8 * 8 + 8 * 32 + 16 * 8
    norms, patch, head = 2 * 8, 4 * 8 + 8, 8 * 4 + 4
    weights = work_of(Config(model=model), CodecGeometry(1, 8, 1)).weights
    # Query-key products and the weighted values are 2 * 2 * pairs * 8 forward, and twice that backward.
    assert (
        training_flops(model, weights, tokens=10, pairs=7)
        == 6 * 10 * (matrices + norms + patch + head / 2) + 3 * 4 * 7 * 8
    )


def counted_flops(config: Config) -> tuple[int, int, int]:
    """(FLOPs of all matrix products of a forward and backward pass as torch counts them, tokens, rows that no head
    reads); every pair counts, for `reference` computes them all.
    """
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import activate

    model, objective = build_network(config, 4, activate("cpu"), "reference"), build_objective(config)
    row = objective.prepare([Sample(key=1, name="1", mean=torch.randn(4, 4, 8, 8), logvar=None, clips=(1, 2, 1))], 1)
    with FlopCounterMode(display=False) as counter:
        objective.score(model(row), row).total.backward()
    return counter.get_total_flops(), row.length, row.length - len(row.scored_rows)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize(
    ("policy", "count", "layers"), [("selective", 0, 0), ("mlp", 0, 3), ("mlp", 1, 1), ("full", 0, 3), ("full", 2, 2)]
)
def test_recomputation_adds_the_flops_that_torch_counts(
    processes: None, policy: str, count: int, layers: int, activation: str
) -> None:
    model = {
        "num_layers": 3,
        "hidden_size": 64,
        "ffn_hidden_size": 112,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "activation": activation,
    }
    recompute = {"recompute": policy, "recompute_layers": count}
    plain, again = (
        config_from_dict({"model": model, "parallel": parallel, "train": {"precision": "fp32"}})
        for parallel in ({}, recompute)
    )
    (before, tokens, unscored), (after, _, _) = counted_flops(plain), counted_flops(again)
    work, weights = (tokens, tokens**2, (unscored, unscored * tokens)), objective_work(plain).weights
    # The estimate counts weights of norms as if they were matrices; torch does not.  The last layer, where it is
    # recomputed, has fewer rows in one norm.
    norms = 2 * 64 * (2 * layers * tokens - (layers == 3) * unscored) if policy == "full" else 0
    assert hardware_flops(again, weights, *work) - hardware_flops(plain, weights, *work) == pytest.approx(
        after - before + norms, rel=1e-12
    )
    assert (after > before) == (layers > 0)


def test_hardware_flops_are_what_torch_counts(processes: None) -> None:
    counted, tokens, unscored = zip(
        *(
            counted_flops(
                config_from_dict({"model": {**asdict(TINY), "num_layers": layers}, "train": {"precision": "fp32"}})
            )
            for layers in (1, 2)
        )
    )

    def estimated(function: Callable[..., float], layers: int) -> float:
        config = config_from_dict({"model": asdict(replace(TINY, num_layers=layers))})
        weights = work_of(config, CodecGeometry(4, 8, 1)).weights
        first = config if function is hardware_flops else config.model
        return function(first, weights, tokens[0], tokens[0] ** 2, (unscored[0], unscored[0] * tokens[0]))

    # A layer that is not the last; then the model of one: embedding, head, and a last layer that projects all rows'
    # queries and computes the scored ones.
    norms = 6 * 2 * 64 * tokens[0]
    assert estimated(hardware_flops, 2) - estimated(hardware_flops, 1) == counted[1] - counted[0] + norms
    assert estimated(hardware_flops, 1) == pytest.approx(counted[0], rel=0.03)
    assert estimated(hardware_flops, 1) - estimated(training_flops, 1) == 6 * 64 * 64 * unscored[0]


def test_hardware_flops_of_a_pipeline_are_those_of_all_ranks() -> None:
    def extra(**parallel: object) -> float:
        config = config_from_dict({"model": {"num_layers": 8}, "parallel": parallel})
        weights = objective_work(config).weights
        return hardware_flops(config, weights, 1000, 5000) - training_flops(config.model, weights, 1000, 5000)

    assert extra(recompute="full", recompute_layers=1, pipeline=4) == pytest.approx(
        extra(recompute="full", recompute_layers=4), rel=1e-12
    )
    assert extra(recompute="mlp", pipeline=2, virtual_pipeline=2) == 8 * 6 * 3072 * 8192 * 1000
    with pytest.raises(ValueError, match="resolve_recompute"):
        extra(recompute="auto")


def test_a_ranks_parameters_follow_tensor_and_pipeline_parallelism() -> None:
    def on_rank(**parallel: int) -> int:
        shape = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
        return rank_parameters(config_from_dict({"model": shape, "parallel": parallel}), 4)

    counts = component_parameters(TABLE, replace(TINY, num_layers=4), 4)
    matrices, norms = 4 * (64 * 192 + 64 * 64 + 64 * 256 + 128 * 64), 4 * 2 * 64
    assert counts["decoder.layers"] == matrices + norms
    assert on_rank() == sum(counts.values())
    assert on_rank(tensor=4) == sum(counts.values()) - matrices * 3 // 4
    head = sum(count for name, count in counts.items() if name.startswith("head.")) + counts["decoder.final_layernorm"]
    embedding = sum(count for name, count in counts.items() if name.startswith("embedding."))
    assert on_rank(pipeline=2) == counts["decoder.layers"] // 2 + max(head, embedding)


@pytest.mark.parametrize(
    ("layers", "pipeline", "chunks", "expected"),
    [
        (32, 1, 1, (32,)),
        (32, 4, 1, (8, 8, 8, 8)),
        (7, 2, 1, (3, 4)),
        (10, 4, 1, (2, 3, 3, 2)),
        (11, 4, 1, (2, 3, 3, 3)),
        (9, 4, 1, (2, 2, 3, 2)),
        (6, 2, 2, (1, 2, 2, 1)),
    ],
)
def test_layers_that_are_left_over_go_to_the_middle_stages(
    layers: int, pipeline: int, chunks: int, expected: tuple[int, ...]
) -> None:
    parallel = {"pipeline": pipeline, "virtual_pipeline": chunks}
    config = config_from_dict({"model": {"num_layers": layers}, "parallel": parallel})
    assert stage_layers(config) == expected
    explicit = config_from_dict(
        {"model": {"num_layers": layers}, "parallel": {**parallel, "pipeline_layers": list(reversed(expected))}}
    )
    assert stage_layers(explicit) == expected[::-1]


def test_typical_frames_and_units() -> None:
    assert typical_frame(config_from_dict({"data": {"source": "videos", "longest_side": 320}})) == (176, 320)
    assert typical_frame(config_from_dict({"data": {"physics": {"size": 96}}})) == (96, 96)
    assert [in_units(value, 1000, " kMG") for value in (12, 1500, 3.7e9, 5e12)] == ["12", "1.5 k", "3.7 G", "5e+03 G"]
