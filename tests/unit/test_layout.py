"""Layout and intervals against the mask rule evaluated token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask
from megatron_videogpt.sequence.layout import (
    CLEAN,
    NOISY,
    PAD,
    PREFIX,
    Clip,
    ClipShape,
    Layout,
    layout,
    pack,
    training_shape,
)

CLIPS = st.lists(st.builds(Clip, st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=4).map(tuple)
SHAPES = st.builds(
    ClipShape,
    clips=CLIPS,
    grid=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    prefix=st.integers(0, 3),
)


def sees(row: Layout, query: int, key: int) -> bool:
    """The rule of tests/golden/README.md, section 4, and of a prefix, for one pair."""
    of = {
        name: (int(getattr(row, name)[query]), int(getattr(row, name)[key]))
        for name in ("kind", "role", "frame", "clip", "sequence")
    }
    (kind_q, kind_k), (frame_q, frame_k) = of["kind"], of["frame"]
    own_role = of["role"][1] <= of["role"][0]
    if of["sequence"][0] != of["sequence"][1]:
        return False
    if kind_q == PAD:
        return key == int((row.kind == PAD).nonzero()[0])
    if kind_k == PREFIX:
        return True
    if kind_q == PREFIX:
        return False
    if kind_k == NOISY:
        return kind_q == NOISY and of["clip"][0] == of["clip"][1] and own_role
    if kind_q == NOISY:
        return of["clip"][1] < of["clip"][0]
    return kind_q == CLEAN and (frame_k < frame_q or (frame_k == frame_q and own_role))


def rule_mask(row: Layout) -> torch.Tensor:
    return torch.tensor(
        [[sees(row, q, k) for k in range(len(row))] for q in range(len(row))], dtype=torch.bool
    ).reshape(len(row), len(row))


@settings(max_examples=200, deadline=None)
@given(st.lists(SHAPES, min_size=1, max_size=2), st.sampled_from([1, 8]))
def test_intervals_are_the_rule(shapes: list[ClipShape], multiple: int) -> None:
    row = pack([layout(shape) for shape in shapes], multiple)
    expected = rule_mask(row)
    assert len(row) % multiple == 0
    assert torch.equal(dense_mask(row.intervals), expected)
    assert torch.equal(dense_mask(row.columns).T, expected)
    assert attended_pairs(row.intervals) == int(expected.sum())


def test_positions_are_shared_by_both_copies_of_a_frame() -> None:
    row = layout(training_shape((2, 3, 1), (2, 2)))
    for frame in range(5):
        clean = row.position[(row.kind == CLEAN) & (row.frame == frame)]
        noisy = row.position[(row.kind == NOISY) & (row.frame == frame)]
        assert sorted(clean.tolist()) == sorted(noisy.tolist()) == list(range(frame * 6, frame * 6 + 6))


def test_eighty_frames_have_the_token_count_of_the_design() -> None:
    assert len(layout(training_shape((7,) * 11 + (2, 1), (12, 20)))) == 38478
