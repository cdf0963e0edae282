"""Which layers recompute, counted by hand; that results do not change is tested over layouts."""

from __future__ import annotations

import pytest

from megatron_videogpt.config.derived import recomputed_layers
from megatron_videogpt.config.schema import ParallelConfig


@pytest.mark.parametrize(
    ("policy", "count", "layers", "expected"),
    [
        ("none", 0, (4, 4), (0, 0)),
        ("selective", 0, (4, 4), (0, 0)),
        ("mlp", 0, (4, 3), (4, 3)),
        ("full", 0, (5,), (5,)),
        ("full", 3, (5,), (3,)),
        ("mlp", 5, (4, 3), (4, 1)),  # the first chunk's activations are held longest
        ("full", 9, (4, 3), (4, 3)),
    ],
)
def test_layers_that_recompute(policy: str, count: int, layers: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert recomputed_layers(ParallelConfig(recompute=policy, recompute_layers=count), layers) == expected
