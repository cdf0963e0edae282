"""The triton attention backend in Triton's interpreter, on a CPU, against the oracle in float64; tiles are small so
that short rows have many.

The interpreter's bf16 products are wrong, so float32 and float16 only; `test_triton_compile` compiles the kernels for
bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from megatron_videogpt.attention import attend, verify
from megatron_videogpt.attention.tiles import tiles
from megatron_videogpt.sequence.layout import Clip, ClipShape, layout, pack, training_shape
from tests.random_layouts import COUNT, Case, over_time, random_case
from tests.triton_tools import interpreted

PACKAGE = "megatron_videogpt.attention"
HEAD_DIMS = (16, 64, 96, 128)
TILES = ((16, 16), (32, 16), (16, 32), (32, 32), (64, 16))
BUDGET = 120
"""Tokens of a random row, about."""


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """`triton_attention` with interpreted kernels."""
    with interpreted(
        *(f"{PACKAGE}.{name}" for name in ("triton_kernels", "triton_backward_kernels", "triton_attention"))
    ) as modules:
        yield modules[-1]


@pytest.fixture
def use(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `verify` compute the backend `triton` with interpreted kernels in these tiles: (rows, keys) of forward,
    key_value, query.
    """

    def set_tiles(*shapes: tuple[int, int]) -> None:
        forward, key_value, query = (backend.Launch(*shape, 4, 1) for shape in shapes)
        launches = backend.Launches(forward, key_value, key_value, query)

        def run(
            name: str, q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = True
        ) -> Tensor:
            if name != "triton":
                return attend(name, q, k, v, intervals, scale, deterministic)
            return backend.attend(q, k, v, intervals, scale, deterministic, launches)

        monkeypatch.setattr(verify, "attend", run)

    return set_tiles


def shapes_of(seed: int) -> tuple[tuple[int, int], ...]:
    """Tiles of the three kernels for one random row."""
    return TILES[seed % 5], TILES[seed // 5 % 5], TILES[(seed + 2) % 5]


def assert_right(errors: verify.Errors, what: object) -> None:
    for name, found, allowed in zip(verify.NAMES, *errors):
        assert found <= allowed, (what, name, found, allowed)


def case_of(seed: int) -> Case:
    """A random row; most have one key-value head, because the interpreter takes its time for each."""
    case = random_case(seed, BUDGET)
    return case if seed % 4 == 0 else case._replace(heads=case.heads // case.kv_heads, kv_heads=1)


@pytest.mark.parametrize(
    "start", [pytest.param(start, marks=[pytest.mark.long] if start else []) for start in range(0, COUNT, 25)]
)
def test_matches_reference_on_random_rows(use: Callable[..., None], start: int) -> None:
    """Every third in float16, every other one with atomics, every fourth head dimension; 25 have all pairs of tiles of
    two kernels.
    """
    for seed in range(start, start + 25):
        case = case_of(seed)
        use(*shapes_of(seed))
        inputs = case.tensors(
            HEAD_DIMS[(seed + seed // 4) % 4], torch.float16 if seed % 3 == 0 else torch.float32, seed=seed
        )
        errors = verify.errors("triton", inputs, case.intervals[case.kept], deterministic=seed % 2 == 0)
        assert_right(errors, seed)


@pytest.mark.parametrize("deterministic", [True, False])
def test_matches_reference_on_a_mask_with_an_order(use: Callable[..., None], deterministic: bool) -> None:
    use((32, 16), (16, 32), (32, 32))
    case = over_time()
    assert_right(verify.errors("triton", case.tensors(16, torch.float32), case.intervals, deterministic), "over time")


def test_random_rows_have_tiles_of_every_kind() -> None:
    ragged_full = full = partial = empty = 0
    for seed in range(COUNT):
        case, (row_tile, key_tile) = case_of(seed), shapes_of(seed)[0]
        in_part, in_full = tiles(case.intervals[case.kept], row_tile, key_tile, len(case.intervals))
        full, partial, empty = (
            full + int(in_full.sum()),
            partial + int(in_part.sum()),
            empty + int((~(in_part | in_full)).sum()),
        )
        ragged_full += int(in_full[-1].sum()) if len(case.kept) % row_tile else 0
    assert min(full, partial, empty) > 100 and ragged_full > 50


def test_verification_passes_in_the_default_order_of_tiles(use: Callable[..., None]) -> None:
    use((128, 128), (64, 128), (128, 64))
    assert verify.problem("triton", torch.device("cpu"), torch.float32, 96) == ""


def inputs_of(intervals: Tensor, head_dim: int, dtype: torch.dtype = torch.float32, heads: int = 2) -> list[Tensor]:
    return Case(intervals, heads, heads, torch.arange(len(intervals))).tensors(head_dim, dtype)


def test_large_scores(use: Callable[..., None]) -> None:
    """Scores of thousands: nothing overflows, and errors are what rounding explains (the weights' are those of the
    scores, which are large numbers).
    """
    use((32, 32), (32, 32), (32, 32))
    intervals = pack([layout(training_shape((1, 2, 2), (3, 3)))] * 2, 7).intervals
    inputs = [x * 20 for x in inputs_of(intervals, 32)]
    assert_right(verify.errors("triton", inputs, intervals), "large scores")


def test_takes_strided_views_without_copies(backend: ModuleType) -> None:
    intervals = pack([layout(training_shape((2, 1), (3, 3)))], 5).intervals
    plain = inputs_of(intervals, 16)
    # One tensor of q, k and v side by side, as a fused projection leaves them; the gradient of a transposed output.
    joined = torch.stack(plain[:3], dim=2)
    launch = backend.Launch(16, 16, 4, 1)
    results = []
    for q, k, v, grad in (plain, [*joined.unbind(2), plain[3].transpose(0, 1).contiguous().transpose(0, 1)]):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = backend.attend(*leaves, intervals, 0.3, True, backend.Launches(*[launch] * 4))
        assert out.grad_fn.saved_tensors[0].data_ptr() == q.data_ptr()
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    assert not joined.unbind(2)[0].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_saves_nothing_that_grows_with_the_square_of_the_length(backend: ModuleType) -> None:
    intervals = layout(training_shape((4, 4), (4, 4))).intervals
    inputs = [x.requires_grad_() for x in inputs_of(intervals, 16)[:3]]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        backend.attend(*inputs, intervals, 0.5, True, backend.Launches(*[backend.Launch(64, 64, 4, 1)] * 4))
    assert len(saved) == 6 and max(saved) == inputs[0].numel()


def test_longest_tiles_come_first(backend: ModuleType) -> None:
    intervals = pack([layout(ClipShape((Clip(3), Clip(2), Clip(3, has_clean=False)), (4, 4)))] * 2).intervals
    for walk in backend._walks(intervals, backend.Launch(16, 32, 4, 1), len(intervals)):
        work = walk.counts.sum(1)[walk.order.long()].tolist()
        assert work == sorted(work, reverse=True) and len(set(work)) > 3
        assert sorted(walk.order.tolist()) == list(range(len(walk.order)))


def test_tiles_are_found_once_for_all_layers(backend: ModuleType) -> None:
    intervals = layout(training_shape((2, 2), (3, 3))).intervals
    launch = backend.Launch(16, 16, 4, 1)
    assert backend._walks(intervals, launch, len(intervals)) is backend._walks(
        intervals.detach(), launch, len(intervals)
    )


def test_refuses_in_one_line(backend: ModuleType) -> None:
    intervals = torch.tensor([[0, 4, 0, 0]] * 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="16, 32, 64, 96, 128, and it is 80: use attention.backend=auto"):
        backend.attend(*inputs_of(intervals, 80)[:3], intervals, 0.3)
    with pytest.raises(ValueError, match="torch.float64"):
        backend.attend(*inputs_of(intervals, 16, torch.float64)[:3], intervals, 0.3)
    with pytest.raises(ValueError, match="positive scale, and it is 0"):
        backend.attend(*inputs_of(intervals, 16)[:3], intervals, 0.0)
