"""The cache of keys and values: the clips of a history computed again, from fewer tokens in buffers of one size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_videogpt.config.schema import Config, SampleConfig
from megatron_videogpt.hub.common.sampling_videogpt import Denoiser, Recompute, Settings, continue_videos
from megatron_videogpt.model.cache import CachedRow, KeyValueCache, portions, regions_of
from megatron_videogpt.objective.next_clip.sampler import keyed_noise
from megatron_videogpt.objective.noise import normal
from tests import dense
from tests.parity.test_dense import build

pytestmark = pytest.mark.usefixtures("processes")

SHAPES = {
    "multi-head": dense.Tiny(width=32, heads=2, groups=2, ffn=48),
    "grouped-query": dense.Tiny(width=64, heads=4, groups=2, ffn=48),
    "long RoPE": dense.Tiny(
        width=32, heads=2, groups=1, ffn=48, long_factor=tuple(1 + 0.3 * i for i in range(8)), longest=131072
    ),
}
SIZES = ((4, 6), (6, 4), (2, 8))
"""Latent rows and columns of the videos."""
SLIDING = Settings(
    clips=(2, 1, 3, 1, 2), window=6, steps=3, guidance=3.0, guidance_schedule=((0.5, 1.5),), time_shift=1.5
)
"""Grows, slides for a long clip, and grows and slides again."""


@cache
def model_of(name: str, backend: str) -> tuple[Any, Config, dict[str, Tensor]]:
    # Half the usual size: with larger ones a chain doubles rounding errors at every step, whoever computes it.
    weights = {
        key: value / 2 if value.dim() > 1 else value
        for key, value in dense.random_weights(SHAPES[name], seed=len(name)).items()
    }
    return *build(SHAPES[name], weights, backend=backend), weights


def cached(name: str, backend: str = "ranged", most_tokens: int = 1 << 12, **sample: Any) -> Any:
    from megatron_videogpt.objective.flow_cache import CachedDenoiser
    from megatron_videogpt.objective.next_clip.denoiser import form_of

    model, config, _ = model_of(name, backend)
    config = replace(config, sample=SampleConfig(**sample))
    return CachedDenoiser([model], config, torch.device("cpu"), form_of(config), most_tokens)


def independent(name: str) -> Recompute:
    """A denoiser of the dense implementation, which shares no code with the package."""
    tiny, weights = SHAPES[name], model_of(name, "ranged")[2]

    @torch.no_grad()
    def function(histories: list[Tensor], clips: list[Tensor], t: float, conditions: Any) -> list[Tensor]:
        results = []
        for past, clip in zip(histories, clips):
            # History is a clip of its own, whose noisy copy nobody else sees.
            blocks, noisy = [n for n in (len(past), len(clip)) if n], torch.cat([past, clip])
            results.append(dense.forward(weights, tiny, blocks, noisy, past, torch.full((len(noisy),), t))[len(past) :])
        return results

    return Recompute(function)


def histories_of(frames: tuple[int, ...]) -> list[Tensor]:
    return [normal(n, "history", (count, 4, *SIZES[n])) for n, count in enumerate(frames)]


def chain(denoiser: Denoiser, wanted: Settings = SLIDING, frames: tuple[int, ...] = (4, 1, 0)) -> list[Tensor]:
    return continue_videos(denoiser, histories_of(frames), wanted, keyed_noise(range(len(frames)), 0))


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest, as a fraction of the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


# Noise on the history is the sampler's and not the attention's, so that one shape is enough for it.
@pytest.mark.parametrize(("name", "history_noise"), [*((name, 0.0) for name in SHAPES), ("grouped-query", 0.2)])
def test_a_chain_is_that_of_an_implementation_without_cache(name: str, history_noise: float) -> None:
    wanted = replace(SLIDING, history_noise=history_noise)
    ours, theirs = chain(cached(name), wanted), chain(independent(name), wanted)
    assert difference(ours, theirs) < 1e-5
    # It would be found out: guidance of another scale moves the result by far more.
    assert difference(chain(cached(name), replace(wanted, guidance=2.9)), theirs) > 5e-4


@pytest.mark.parametrize(("frames", "guidance"), [((0,), 1.0), ((5,), 3.0), ((0, 0), 3.0)])
def test_histories_of_any_length(frames: tuple[int, ...], guidance: float) -> None:
    wanted = Settings(clips=(1, 2), window=5, steps=2, guidance=guidance)
    assert (
        difference(chain(cached("grouped-query"), wanted, frames), chain(independent("grouped-query"), wanted, frames))
        < 1e-5
    )


def test_every_backend_reads_the_buffers() -> None:
    assert difference(chain(cached("grouped-query", "reference")), chain(cached("grouped-query"))) < 1e-5


def test_histories_that_take_several_passes() -> None:
    """40 tokens are two frames or less."""
    assert difference(chain(cached("multi-head", most_tokens=40)), chain(cached("multi-head"))) < 1e-5


class Poisoned:
    """A denoiser whose buffers are spoilt wherever it has not written for the current history."""

    def __init__(self, inner: Any, spoil_kept: bool = False) -> None:
        self.inner, self.spoil_kept = inner, spoil_kept

    def _spoil(self, keep: list[tuple[int, int]]) -> None:
        for keys, values in self.inner.cache.layers.values():
            spoilt = torch.ones(len(keys), dtype=torch.bool)
            for start, end in keep:
                spoilt[start:end] = False
            # Finite, because a kernel may multiply what it reads by a weight of zero.
            keys[spoilt], values[spoilt] = 50.0, 1e6

    def begin(self, conditions: list[Tensor | None]) -> None:
        self.inner.begin(conditions)

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        self._spoil([(r.start, r.row(n)) for r, n in zip(self.inner.regions, kept) if not self.spoil_kept])
        self.inner.remember(histories, kept)
        self._spoil([(r.start, r.end) for r in self.inner.regions])

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> Any:
        return self.inner.predict(clips, t, guided)


@pytest.mark.parametrize("sample", [{}, {"cache_offload": True}], ids=["device", "offload"])
def test_nothing_stale_is_attended(sample: dict[str, Any]) -> None:
    expected = chain(cached("grouped-query"))
    assert difference(chain(Poisoned(cached("grouped-query", **sample))), expected) == 0
    assert difference(chain(Poisoned(cached("grouped-query", **sample), spoil_kept=True)), expected) > 1, (
        "kept rows must matter"
    )


@contextlib.contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Tokens of every pass through the decoder."""
    lengths: list[int] = []
    hook = model.embedding.register_forward_hook(lambda module, inputs, output: lengths.append(len(output)))
    yield lengths
    hook.remove()


def test_a_step_computes_noisy_tokens_only() -> None:
    wanted, block = Settings(clips=(2, 1, 2), window=7, steps=2, guidance=3.0), 2 * 3 + 2
    with counting(model_of("multi-head", "ranged")[0]) as lengths:
        chain(cached("multi-head"), wanted, (4,))
    # Both branches of a step; the history once, each finished clip once, and all of the window after it moved.
    assert lengths == [n * block for n in (4, 4, 4, 2, 2, 2, 5, 4, 4)]
    with counting(model_of("multi-head", "ranged")[0]) as lengths:
        chain(cached("multi-head"), replace(wanted, clips=(2, 1), guidance=1.0, history_noise=0.1), (4,))
    assert lengths == [n * block for n in (4, 2, 2, 6, 1, 1)], "noise on the history means computing it again"


def test_long_rollouts_take_no_more_memory() -> None:
    denoiser, sizes = cached("multi-head"), []
    for _ in chain(Sizes(denoiser, sizes), Settings(clips=(2,) * 20, window=6, steps=1, guidance=2.0), (3,)):
        pass
    rows, row = (4 * 8 + 2 * 2 * 8), 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers with 2 heads of 16, float32
    assert sizes[2:] == [rows * row] * 18 and max(sizes) == rows * row
    assert len(denoiser.rows) == 1, "what was prepared for earlier clips is gone"


class Sizes:
    """Notes the size of the buffers at every clip."""

    def __init__(self, inner: Any, sizes: list[int]) -> None:
        self.begin, self.remember, self.inner, self.sizes = inner.begin, inner.remember, inner, sizes

    def predict(self, clips: list[Tensor], t: float, guided: bool) -> Any:
        result = self.inner.predict(clips, t, guided)
        self.sizes.append(self.inner.cache.bytes)
        return result


@pytest.mark.parametrize(("dtype", "eps"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_smaller_numbers_in_the_cache(dtype: str, eps: float) -> None:
    wanted = Settings(clips=(2, 1, 2), window=6, steps=3)
    exact, small = cached("grouped-query"), cached("grouped-query", cache_dtype=dtype)
    expected = chain(exact, wanted)
    assert eps / 100 < difference(chain(small, wanted), expected) < eps
    assert small.cache.layers[1][0].dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert small.cache.bytes < exact.cache.bytes / 2
    # The dtype of the weights by its name is no conversion.
    named = cached("grouped-query", cache_dtype="fp32")
    assert difference(chain(named, wanted), expected) == 0 and not named.cache.copied


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_offloading_changes_no_bit(dtype: str) -> None:
    here, away = (cached("grouped-query", cache_dtype=dtype, cache_offload=offload) for offload in (False, True))
    assert difference(chain(away), chain(here)) == 0
    assert away.cache.bytes > 0 and away.cache.copied


def test_a_denoiser_is_used_again() -> None:
    """For other videos, more and then fewer of them, as the demo does."""
    denoiser = cached("multi-head")
    for frames in ((2,), (3, 1, 2), (1, 4)):
        assert difference(chain(denoiser, frames=frames), chain(cached("multi-head"), frames=frames)) < 1e-5


def test_the_cache_is_an_option() -> None:
    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser

    model, config, _ = model_of("multi-head", "ranged")
    assert type(build_denoiser([model], config, torch.device("cpu"))) is type(cached("multi-head"))
    plain = build_denoiser([model], replace(config, sample=SampleConfig(cache=False)), torch.device("cpu"))
    assert type(plain) is Recompute and difference(chain(plain), chain(cached("multi-head"))) < 1e-5


def test_sampling_leaves_training_mode_alone() -> None:
    model, _, _ = model_of("multi-head", "ranged")
    model.train()
    chain(cached("multi-head"), Settings(clips=(1,), window=2, steps=1), (1,))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(3, 12)), min_size=1, max_size=4),
    st.integers(1, 60),
)
def test_passes_cover_every_frame_once(videos: list[tuple[int, int, int]], most: int) -> None:
    spans, blocks = [(first, first + count) for first, count, _ in videos], [block for *_, block in videos]
    passes = portions(spans, blocks, most)
    for video, (first, end) in enumerate(spans):
        frames = [
            frame for one in passes for number, start, stop in one if number == video for frame in range(start, stop)
        ]
        assert frames == list(range(first, end))
    for one in passes:
        tokens = sum((stop - start) * blocks[video] for video, start, stop in one)
        assert 0 < tokens <= most or [stop - start for _, start, stop in one] == [1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_that_stay_valid_move_along(data: st.DataObject) -> None:
    """Against a list of what each video remembers."""
    blocks = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    buffers, held, regions, largest = (
        KeyValueCache(),
        [[] for _ in blocks],
        regions_of([0] * len(blocks), blocks, [0] * len(blocks)),
        0,
    )
    for number in range(data.draw(st.integers(1, 4))):
        kept = [data.draw(st.integers(0, len(frames))) for frames in held]
        counts = [old + data.draw(st.integers(0, 4)) for old in kept]
        before, regions = regions, regions_of(counts, blocks, [0] * len(blocks))
        scratch = data.draw(st.integers(0, 5))
        moves = [(old.start, new.start, n * new.block) for old, new, n in zip(before, regions, kept) if n]
        buffers.arrange(regions[-1].end, scratch, moves)
        places, held = (
            [],
            [
                [*frames[:n], *[(number, v)] * (count - n)]
                for v, (frames, n, count) in enumerate(zip(held, kept, counts))
            ],
        )
        for region, n in zip(regions, kept):
            places += range(region.start + n * region.block, region.end)
        new = torch.tensor(
            [
                100.0 * number + v
                for v, (region, n) in enumerate(zip(regions, kept))
                for _ in range((region.frames - n) * region.block)
            ]
        )
        end = regions[-1].end
        keys, values = buffers.store(
            1,
            new[:, None, None],
            -new[:, None, None],
            CachedRow(buffers, torch.tensor(places, dtype=torch.int64), end, end, len(places)),
        )
        expected = [100.0 * when + v for frames, block in zip(held, blocks) for when, v in frames for _ in range(block)]
        assert keys.flatten().tolist() == expected and values.flatten().tolist() == [-x for x in expected]
        largest = max(largest, end + scratch)
        assert buffers.rows == largest, "no more than was ever needed"
