"""Sampling behind frame prompts: with a cache and without, while the window stands and once it moves, under both
policies of its end, against a dense twin that keeps nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.hub.common.sampling_videogpt import Settings
from megatron_videogpt.objective.frame_prompt.rollout import chunks_of, pieces
from megatron_videogpt.objective.frame_prompt.sampler import FrameSampler, keyed_noise
from megatron_videogpt.objective.noise import normal
from tests import frame_prompt as twin

pytestmark = pytest.mark.usefixtures("processes")

SIZES = ((4, 6), (6, 4), (2, 8))
CLASSES = ConditionConfig(kind="class", classes=("a", "b", "c"))
SLIDING = Settings(clips=(2, 2, 1, 2, 2, 2), window=5, steps=2)
"""Full after the second chunk, and moved by every one from then on."""
STANDING = replace(SLIDING, window=14)
TOLD: list[Tensor | None] = [torch.tensor([2]), None, torch.tensor([0])]


@cache
def weights() -> dict[str, Tensor]:
    return twin.weights_of(scale=0.5)


def ours(told: bool = False, backend: str = "ranged", most_tokens: int = 0, **sample: Any) -> Any:
    from megatron_videogpt.objective.frame_prompt.denoiser import build_denoiser

    model, config = twin.build(weights(), CLASSES if told else ConditionConfig(), backend)
    denoiser: Any = build_denoiser([model], replace(config, sample=SampleConfig(**sample)), torch.device("cpu"))
    denoiser.most_tokens = most_tokens or getattr(denoiser, "most_tokens", 0)
    return denoiser


def chain(
    denoiser: Any,
    wanted: Settings = SLIDING,
    keep: bool = False,
    told: list[Tensor | None] | None = None,
    frames: tuple[int, ...] = (3, 1, 0),
) -> list[Tensor]:
    histories = [normal(n, "history", (count, 4, *SIZES[n])) for n, count in enumerate(frames)]
    made = chunks_of(denoiser, histories, wanted, keyed_noise(range(len(frames)), 0), keep, told)
    return [torch.cat(parts) for parts in zip(*made)]


def difference(found: list[Tensor], expected: list[Tensor], frames: slice = slice(None)) -> float:
    """Largest, as a fraction of the largest value."""
    return max(float((a[frames] - b[frames]).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("keep", [False, True])
def test_a_chain_is_that_of_an_implementation_without_cache(keep: bool, noise: float) -> None:
    wanted = replace(SLIDING, history_noise=noise)
    expected = chain(twin.Twin(weights()), wanted, keep)
    assert difference(chain(ours(), wanted, keep), expected) < 1e-5
    if not keep:
        assert difference(chain(ours(cache=False), wanted), expected) < 1e-5


def test_both_policies_are_the_same_until_the_window_moves() -> None:
    recomputed, kept = chain(ours()), chain(ours(), keep=True)
    # The first video's window of 5 frames holds its 3 and the first chunk.
    assert difference(recomputed, kept, slice(0, 2)) < 1e-5
    assert difference(recomputed[:1], kept[:1], slice(2, None)) > 1e-3
    standing = chain(ours(), STANDING), chain(ours(), STANDING, keep=True), chain(ours(cache=False), STANDING)
    assert difference(standing[0], standing[1]) < 1e-5 and difference(standing[0], standing[2]) < 1e-5


@pytest.mark.parametrize("keep", [False, True])
def test_guidance_is_by_the_condition_and_both_branches_have_the_prompt(keep: bool) -> None:
    wanted = replace(SLIDING, guidance=3.0, guidance_schedule=((0.5, 1.0),))
    expected = chain(twin.Twin(weights()), wanted, keep, TOLD)
    assert difference(chain(ours(True), wanted, keep, TOLD), expected) < 1e-5
    assert difference(chain(twin.Twin(weights()), SLIDING, keep, TOLD), expected) > 1e-3, "guidance matters"
    if not keep:
        assert difference(chain(ours(True, cache=False), wanted, told=TOLD), expected) < 1e-5
    # One step by hand: velocities from noise at t = 0.
    one = Settings(clips=(2,), window=5, steps=1, guidance=3.0)
    history, noise = normal(0, "history", (3, 4, *SIZES[0])), keyed_noise([0], 0)(0, "init", 0, (2, 4, *SIZES[0]))
    times = torch.tensor([1.0, 1, 1, 0, 0])
    with torch.no_grad():
        plain, shown = (
            twin.forward(weights(), torch.cat([history, noise]), times, prefix=prefix)[3:] - noise
            for prefix in (None, weights()["class_embedding.weight"][TOLD[0]])
        )
    wanted_clip = noise + plain + 3 * (shown - plain)
    assert difference(chain(ours(True), one, told=TOLD[:1], frames=(3,)), [wanted_clip]) < 1e-5


@pytest.mark.parametrize("sample", [{"cache_dtype": "bf16"}, {"cache_offload": True}])
@pytest.mark.parametrize("keep", [False, True])
def test_other_buffers(keep: bool, sample: dict[str, Any]) -> None:
    limit = 1e-5 if "cache_offload" in sample else 2**-6
    assert difference(chain(ours(**sample), keep=keep), chain(ours(), keep=keep)) < limit


@pytest.mark.parametrize("keep", [False, True])
def test_prompts_that_take_several_passes(keep: bool) -> None:
    assert difference(chain(ours(most_tokens=20), keep=keep), chain(ours(), keep=keep)) < 1e-5


def test_memory_stands_still_once_the_window_is_full() -> None:
    for keep in (False, True):
        denoiser = ours()
        sizes = []
        for count in (4, 8):
            chain(denoiser, Settings(clips=(2,) * count, window=5, steps=1), keep)
            sizes.append(denoiser.cache.bytes)
        assert sizes[0] == sizes[1] > 0


def test_a_kept_frame_is_written_once() -> None:
    """Tokens that go through the model for a finished chunk: its own, and with recompute all that are left."""
    for keep, expected in ((True, [24, 16, 16, 16]), (False, [24, 24, 24, 24])):
        denoiser, passes = ours(), list[int]()
        real = denoiser._encode

        def encode(parts: Any, real: Any = real, passes: list[int] = passes) -> None:
            passes.append(sum(len(item.layout) for _, _, item in parts))
            real(parts)

        denoiser._encode = encode
        chain(denoiser, Settings(clips=(2,) * 4, window=5, steps=1), keep, frames=(3,))
        assert passes == expected


def test_longer_clips_are_made_in_chunks_and_the_window_is_that_of_training() -> None:
    assert pieces((3, 8), 3) == [[3], [3, 3, 2]]
    history = [normal(0, "history", (3, 4, *SIZES[0]))]
    sampler, seen = FrameSampler(ours(), 2, 5), []
    whole = SampleConfig(clips=(5,), window=80, steps=2, guidance=1.0)
    (clip,) = sampler.rollout(history, whole, [0], 0, watch=lambda frames, tokens: seen.append(frames))
    split = sampler.rollout(history, replace(whole, clips=(2, 2, 1), window=5), [0], 0)
    assert difference(clip, [torch.cat(parts) for parts in zip(*split)]) < 1e-6
    assert sum(seen) == pytest.approx(5)
    # Noise belongs to the frame, however clips are cut.
    other = FrameSampler(ours(), 1, 5).denoiser is not sampler.denoiser
    assert other and torch.equal(keyed_noise([7], 1)(0, "init", 2, (1, 4, 2, 2)), keyed_noise([7], 1)(0, "init", 0, (3, 4, 2, 2))[2:])  # fmt: skip  # noqa: E501


def test_what_cannot_be_sampled_with_is_one_line() -> None:
    history = [normal(0, "history", (3, 4, *SIZES[0]))]
    sampler = FrameSampler(ours(), 4, 5)
    with pytest.raises(UserError, match=r"window=4: clip 1 of 4 frames leaves no room for a frame of history"):
        list(sampler.rollout(history, SampleConfig(clips=(4,), window=4, steps=1), [0], 0))
    bare = FrameSampler(ours(cache=False), 2, 5)
    with pytest.raises(UserError, match=r"sample.window_end = \"keep\": must be recompute with sample.cache = false"):
        list(bare.rollout(history, SampleConfig(clips=(2, 2, 2), window=5, steps=1, window_end="keep"), [0], 0))
