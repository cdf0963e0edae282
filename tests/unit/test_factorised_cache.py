"""The factorised network's cache of finished frames: its chains against those without one and against the stand-alone
network's cache with the same weights, while the window stands and once it moves, under both policies of its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.config.schema import Config, ModelConfig, SampleConfig, TrainConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Chunks, rollout
from megatron_videogpt.objective.frame_prompt.factorised.published import model_of, variant_of
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.sequence.intervals import dense_mask

pytest.importorskip("transformers")
from megatron_videogpt.hub.frame_prompt.memory_frameprompt import memory_of  # noqa: E402
from tests import frame_prompt_hub as hub  # noqa: E402

pytestmark = pytest.mark.usefixtures("processes")

NETWORKS: dict[str, dict[str, Any]] = {
    "released": {"spatial_attn_enhance": "prev_frames_3"},
    "with text": {"caption_channels": 6, "model_max_length": 5},
    "first frame": {"spatial_attn_enhance": "first_frame", "input_size": [6, 4]},
    "partial": {"is_causal": "partial", "spatial_attn_enhance": None, "temp_extra_in_channels": 0, "max_tpe_len": 11},
    "fixed": {"relative_tpe_mode": None, "max_tpe_len": 40, "num_heads": 4, "depth": 3},
}
LIMIT = 5e-5
"""That of recorded contents of a cache."""
TEXT, SEEN = normal(8, "text", (2, 5, 6)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
FRAMES = (1, 2, 2, 2, 2, 2)
"""Given, then chunks: a window of 5 moves for the last three of them."""


def chain(
    memory: Any, frames: tuple[int, ...] = FRAMES, window: int = 5, anew: bool = False, scale: float = 1.0
) -> list[Tensor]:
    """Chunks ``[2, F, 4, h, w]`` of two videos, with prompts as clean as they are."""
    size = memory.size
    given = normal(7, "given", (2, frames[0], 4, *size))

    def noise(video: int, chunk: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return normal(video, f"{chunk} {purpose}", shape)

    wanted = Chunks(frames[1], len(frames) - 1, window, scale)
    return list(rollout(memory, given, wanted, hub.Blend(900.0, 50.0), noise, anew=anew))


def built(model: Any, backend: str = "ranged") -> tuple[Any, Any, ModelConfig]:
    """The megatron-core network with the stand-alone one's weights, its variant and sizes."""
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of
    from megatron_videogpt.platforms import activate

    settings, state = model.config.to_dict(), model.state_dict()
    sizes, variant = model_of(settings), variant_of(settings, "here")
    config = Config(model=sizes, train=TrainConfig(precision="fp32"))
    network = VideoGPT(config, 4, activate("cpu"), backend, ends_of(variant))
    load_released(network, sizes, lambda entry: state[entry.hf])
    return network, variant, sizes


def ours(model: Any, cached: bool = True, window: int = 5, backend: str = "ranged", **kept: Any) -> Any:
    """Our memory; kept: of `CachedMemory`."""
    from megatron_videogpt.objective.frame_prompt.factorised.memory import CachedMemory, Told, WholeMemory
    from megatron_videogpt.objective.frame_prompt.factorised.rows import Text

    network, variant, sizes = built(model, backend)
    texts = [Text(*pair) for pair in zip(TEXT, SEEN)] if variant.text_width else None
    # Padding, and rows that it stands behind.
    told = Told([network], variant, sizes.patch_size, 7, torch.device("cpu"), texts, texts is not None)
    memory: Any = CachedMemory(told, window, **kept) if cached else WholeMemory(told)
    memory.size = model.config.input_size
    return memory


def theirs(model: Any, cached: bool = True, window: int = 5) -> Any:
    text = (TEXT, SEEN, True) if model.config.caption_channels else (None, None, False)
    memory: Any = memory_of(model, window, cached, *text)
    memory.size = model.config.input_size
    return memory


def apart(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Of each chunk, as a fraction of its largest value."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]


def scaled(model: Any) -> Any:
    """Attention less sharp: such weights make much of rounding."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "proj" not in name:
                value.mul_(0.6)
    return model


@pytest.fixture(scope="module")
def models() -> Callable[[str], Any]:
    kept: dict[str, Any] = {}
    return lambda name: kept.setdefault(name, scaled(hub.model_of(**NETWORKS[name])))


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "ranged") for name in NETWORKS), ("with text", "reference"), ("released", "reference")],
)
def test_it_is_the_stand_alone_networks_cache_past_the_window(models: Any, name: str, backend: str) -> None:
    model, scale = models(name), 2.0 if name == "with text" else 1.0
    wanted = chain(theirs(model), scale=scale)
    assert max(apart(chain(ours(model, backend=backend), scale=scale), wanted)) < LIMIT
    # Where nothing is kept, it is something else.
    moved = apart(chain(theirs(model, False), scale=scale), wanted)
    assert max(moved[3:]) > 1e-3


@pytest.mark.parametrize("name", ["released", "with text", "partial", "fixed"])
def test_it_is_the_network_without_one_until_the_window_moves(models: Any, name: str) -> None:
    model, scale = models(name), 2.0 if name == "with text" else 1.0
    # Prefix enhancement keeps frames of the last write alone: of no fewer than it has.
    frames = (1, 3, 3, 3) if name == "released" else FRAMES
    whole, kept, anew = (
        chain(ours(model, cached), frames, scale=scale, anew=anew)
        for cached, anew in ((False, False), (True, False), (True, True))
    )
    still = 2 if name == "released" else 3
    assert max(apart(kept, whole)[:still]) < LIMIT < 1e-3 < max(apart(kept, whole)[still:])
    # What begins anew is always the same.
    assert max(apart(anew, whole)) < LIMIT


@pytest.mark.parametrize(
    ("frames", "window"),
    [((2, 3, 3, 3), 4), ((2, 4, 4, 4), 7), ((3, 2, 2, 2, 2), 3), ((2, 1, 1, 1, 1), 2), ((1, 4, 4), 2)],
)
def test_windows_and_chunks_of_any_size(models: Any, frames: tuple[int, ...], window: int) -> None:
    """Among them given frames fewer than the enhancement's, and chunks longer than the window."""
    model = models("released")
    wanted = chain(theirs(model, window=window), frames, window)
    assert max(apart(chain(ours(model, window=window), frames, window), wanted)) < LIMIT


@pytest.mark.parametrize("name", ["released", "with text"])
def test_what_is_kept_is_what_the_stand_alone_cache_holds(models: Any, name: str) -> None:
    """Keys and values, the oldest frame first, after every write; bytes that no longer grow."""
    from tools.parity.vidgpt_factorised import Sampled
    from tools.parity.vidgpt_plain import Plain

    model, window, bytes_held = models(name), 5, []
    mine, other = ours(model, window=window), theirs(model, window=window)
    plain = Plain(model)
    for number, (first, count) in enumerate([(0, 1), (1, 2), (3, 2), (5, 2), (7, 2), (9, 2)]):
        frames = normal(number, "shown", (2, count, 4, *model.config.input_size))
        for memory in (mine, other):
            memory.show(frames, first)
        told = mine.told
        found = Sampled(told.chunks[0], told.variant, told.patch, told.multiple).kept(mine)
        wanted = plain.kept(other)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key].shape == value.shape and apart([found[key]], [value])[0] < LIMIT, key
        mine.predict(frames[:, :1].expand(-1, 2, -1, -1, -1), 500.0)
        bytes_held.append(mine.kept.bytes)
    assert len(set(bytes_held[3:])) == 1
    layers, width = model.config.depth, model.config.hidden_size
    rows = (2 if name == "with text" else 1) * 2 * 4
    # A ring and the frames of a pass, frames of the enhancement; and padding.
    frames = window + 2 + int(model.config.spatial_attn_enhance[-1])
    assert 0 <= bytes_held[-1] - 4 * layers * 2 * width * rows * frames <= 4 * layers * 2 * width * 6


@pytest.mark.parametrize(("kept", "limit"), [({"offload": True}, LIMIT), ({"dtype": torch.bfloat16}, 2e-2)])
def test_a_cache_elsewhere_or_of_another_dtype(models: Any, kept: dict[str, Any], limit: float) -> None:
    exact = chain(ours(models("released")))
    memory = ours(models("released"), **kept)
    assert max(apart(chain(memory), exact)) < limit
    # Without scratch: a layer attends a copy.
    rows, channels = 2 * 4, 2 * 16 * (2 if "dtype" in kept else 4)
    assert memory.kept.bytes == 2 * rows * channels * (5 + 3)


@pytest.mark.parametrize("shown", [(2,), (1, 2), (2, 2, 2)])
def test_equal_places_are_computed_in_one_call(shown: tuple[int, ...]) -> None:
    """Or two, once the ring is full: every pair of the mask, and no other."""
    from megatron_videogpt.attention.chunks import Costs
    from megatron_videogpt.attention.groups import calls
    from megatron_videogpt.objective.frame_prompt.factorised.kept import Kept
    from megatron_videogpt.objective.frame_prompt.factorised.memory import Told
    from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant

    told = Told([], Variant(), 2, 5, torch.device("cpu"))
    kept = Kept(told.variant, 2, 6, 5)
    for count, writing in [*((count, True) for count in shown), (2, False)]:
        row = told.row(torch.zeros(2, count, 4, 4, 6), count if writing else 0, [0] * count)
        placed, met = kept.met(row, count, writing)
        mask, cached = placed.masks[1], met[1]
        found = torch.zeros(row.length, cached.rows)
        intervals = mask.intervals[mask.queries]
        together = calls(intervals, Costs(1e6, 1, 0), mask.groups)
        # And a call for padding.
        assert len(together) <= 2 + (sum(shown) > 3)
        for call in together:
            rows, keys = (torch.arange(size).view(1, 1, -1, 1) for size in found.shape)
            where, which = call.rows(rows)[..., 0], call.keys(keys)[..., 0]
            seen = torch.ones(where.shape[2], which.shape[2]) if call.box.mask is None else call.box.mask == 0
            for group in range(call.groups):
                found[where[group, 0][:, None], which[group, 0]] += seen.float()
        assert torch.equal(found, dense_mask(intervals, cached.rows).float())
        if writing:
            kept.wrote(met, count)


def test_what_does_not_go_is_said(models: Any) -> None:
    from megatron_videogpt.objective.frame_prompt.factorised.options import FactorisedOptions
    from megatron_videogpt.objective.frame_prompt.factorised.sampler import FactorisedSampler
    from megatron_videogpt.objective.frame_prompt.options import FramePromptOptions

    memory = ours(models("released"))
    memory.show(normal(0, "shown", (2, 2, 4, 4, 4)), 0)
    with pytest.raises(ValueError, match="frames from 3 on: the cache has 0 to 2"):
        memory.show(normal(0, "shown", (2, 2, 4, 4, 4)), 3)
    network, _, sizes = built(models("fixed"))
    options = FactorisedOptions(enhance_frames=2, positions="fixed", places=8)
    objective = FramePromptOptions(network="factorised", prompts=(1, 3), chunk=2, factorised=options)
    sample = SampleConfig(clips=(2, 2, 2, 2), window=5, window_end="keep", history=1, guidance=1.0, steps=1)
    config = Config(model=sizes, objective=objective, sample=sample, train=TrainConfig(precision="fp32"))
    given = [normal(0, "given", (1, 4, 4, 4))]
    bare = replace(config, sample=replace(sample, cache=False))
    for changed, what in ((config, " for 9 frames"), (bare, "sample.cache=true")):
        sampler = FactorisedSampler([network], changed, torch.device("cpu"))
        with pytest.raises(UserError, match=f'sample.window_end = "keep": must be recompute.*{what}') as raised:
            next(iter(sampler.rollout(given, sample, [0], 0)))
        assert "\n" not in str(raised.value)
