"""Sampling with classes and texts: the cache's chain is that of the dense implementation, the prefix is computed once
for a whole rollout, and an exported model does the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.hub.common.sampling_videogpt import Denoiser, Recompute, Settings, continue_videos
from megatron_videogpt.objective.next_clip.sampler import keyed_noise
from megatron_videogpt.objective.noise import normal
from tests import dense
from tests.hub_folder import export, released
from tests.hub_folder import settings as fields
from tests.parity.test_conditions import CONDITIONS, WIDTH, prefix_of, weights_of
from tests.parity.test_dense import build

pytestmark = pytest.mark.usefixtures("processes")

TINY = dense.Tiny(width=32, heads=2, groups=1, ffn=48)
SIZES = ((4, 6), (6, 4), (2, 8))
FRAMES = (4, 1, 0)
SLIDING = Settings(clips=(2, 1, 3, 1, 2), window=6, steps=3, guidance=3.0)
"""Grows, slides for a long clip, and grows and slides again."""
SHOWN: dict[str, list[Tensor | None]] = {
    "class": [torch.tensor([2]), None, torch.tensor([0])],
    "text": [normal(0, "text", (3, WIDTH)), normal(1, "text", (1, WIDTH)), None],
}


def halved(kind: str) -> dict[str, Tensor]:
    """Half the usual size: with larger ones a chain doubles rounding errors at every step, whoever computes it."""
    return {
        key: value.detach() / 2 if value.dim() > 1 and "embedding" not in key else value.detach()
        for key, value in weights_of(TINY, kind).items()
    }


def ours(kind: str, cache: bool = True, **sample: Any) -> tuple[Any, Denoiser]:
    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser

    model, config = build(TINY, halved(kind), backend="ranged", condition=CONDITIONS[kind])
    config = replace(config, sample=SampleConfig(cache=cache, **sample))
    return model, build_denoiser([model], config, torch.device("cpu"))


def independent(kind: str) -> Recompute:
    """A denoiser of the dense implementation, which shares no code with the package."""
    weights = halved(kind)

    @torch.no_grad()
    def function(
        histories: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]
    ) -> list[Tensor]:
        results = []
        for past, clip, told in zip(histories, clips, conditions, strict=True):
            blocks, noisy = [n for n in (len(past), len(clip)) if n], torch.cat([past, clip])
            prefix, times = None if told is None else prefix_of(weights, told), torch.full((len(noisy),), t)
            results.append(dense.forward(weights, TINY, blocks, noisy, past, times, prefix=prefix)[len(past) :])
        return results

    return Recompute(function)


def chain(denoiser: Denoiser, kind: str, wanted: Settings = SLIDING, shown: list[Any] | None = None) -> list[Tensor]:
    histories = [normal(n, "history", (count, 4, *SIZES[n])) for n, count in enumerate(FRAMES)]
    shown = SHOWN[kind] if shown is None else shown
    return continue_videos(denoiser, histories, wanted, keyed_noise(range(len(FRAMES)), 0), conditions=shown)


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest, as a fraction of the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_chain_is_that_of_an_implementation_without_cache(kind: str) -> None:
    expected = chain(independent(kind), kind)
    _, cached = ours(kind)
    for _ in range(2):
        # The second time with what the first rollout left.
        assert difference(chain(cached, kind), expected) < 1e-5
    assert difference(chain(ours(kind, cache=False)[1], kind), expected) < 1e-5
    told = chain(cached, kind, shown=SHOWN[kind][::-1])
    assert difference(told[:1], expected[:1]) > 1e-2, "what is shown matters"
    untold = chain(cached, kind, shown=[None] * 3)
    assert difference(untold, chain(independent(kind), kind, shown=[None] * 3)) < 1e-5


def test_noise_on_the_history_leaves_the_prefix_alone() -> None:
    wanted = replace(SLIDING, history_noise=0.2)
    assert difference(chain(ours("text")[1], "text", wanted), chain(independent("text"), "text", wanted)) < 1e-5


@pytest.mark.parametrize("sample", [{"cache_dtype": "bf16"}, {"cache_offload": True}])
def test_other_buffers(sample: dict[str, Any]) -> None:
    expected = chain(independent("text"), "text")
    limit = 1e-5 if "cache_offload" in sample else 2**-7
    assert difference(chain(ours("text", **sample)[1], "text"), expected) < limit


def test_the_prefix_is_computed_once() -> None:
    model, denoiser = ours("text")
    lengths: list[int] = []
    hook = model.embedding.register_forward_hook(lambda module, inputs, output: lengths.append(len(output)))
    wanted, block = Settings(clips=(2, 1, 2), window=7, steps=2, guidance=3.0), 2 * 3 + 2
    history, told = [normal(0, "history", (4, 4, 4, 6))], [normal(0, "text", (5, WIDTH))]
    continue_videos(denoiser, history, wanted, keyed_noise([0], 0), conditions=told)
    hook.remove()
    # The prefix, the history, both branches of each step; each finished clip once, and all of the moved window.
    assert lengths == [5, *(n * block for n in (4, 4, 4, 2, 2, 2, 5, 4, 4))]


def test_guidance_has_an_unconditional_branch_without_history_too() -> None:
    wanted, shown = Settings(clips=(2,), window=6, steps=2, guidance=3.0), [torch.tensor([1])]
    nothing = [torch.zeros(0, 4, 4, 6)]
    results = [
        continue_videos(denoiser, nothing, wanted, keyed_noise([0], 0), conditions=shown)
        for denoiser in (ours("class")[1], independent("class"))
    ]
    assert difference(*results) < 1e-5
    plain = continue_videos(
        ours("class")[1], nothing, replace(wanted, guidance=1.0), keyed_noise([0], 0), conditions=shown
    )
    assert difference(plain, results[1]) > 1e-3


def folder_fields(kind: str) -> dict[str, Any]:
    return {"class_names": ["a", "b", "c"]} if kind == "class" else {"text_feature_size": WIDTH}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_an_exported_model_does_the_same(kind: str, cache: bool) -> None:
    pytest.importorskip("transformers", reason="the stand-alone model needs transformers (the extra hub)")
    from megatron_videogpt.hub.common.configuration_videogpt import VideoGPTConfig
    from megatron_videogpt.hub.next_clip.denoiser_videogpt import denoiser_of
    from megatron_videogpt.hub.next_clip.modeling_videogpt import VideoGPTModel

    model = VideoGPTModel(VideoGPTConfig(**fields(TINY, **folder_fields(kind)))).eval()
    model.load_state_dict(released(halved(kind), TINY))
    assert difference(chain(denoiser_of(model, cache), kind), chain(independent(kind), kind)) < 2e-5


def test_the_exported_pipeline_takes_classes_and_texts(tmp_path: Any) -> None:
    pytest.importorskip("diffusers", reason="the stand-alone pipeline needs diffusers (the extra hub)")
    from megatron_videogpt.hub.next_clip.pipeline_videogpt import VideoGPTPipeline

    latents = {}
    for kind, shown in (
        ("class", {"class_labels": ["c", 1]}),
        ("text", {"prompt_embeds": [normal(4, "text", (3, WIDTH)), normal(5, "text", (2, WIDTH))]}),
    ):
        folder = export(tmp_path / kind, TINY, halved(kind), **folder_fields(kind))
        pipeline = VideoGPTPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        options = {"clips": (2, 1), "num_inference_steps": 2, "window": 4, "height": 32, "width": 48}

        def run(pipeline: Any = pipeline, options: Any = options, **more: Any) -> list[Tensor]:
            draws = [torch.Generator().manual_seed(n) for n in range(more.pop("videos", 2))]
            return pipeline(**{**options, "output_type": "latent", **more}, generator=draws).frames

        latents[kind] = run(**shown)
        assert [tuple(part.shape) for part in latents[kind]] == [(3, 4, 4, 6)] * 2
        assert difference(latents[kind][:1], latents[kind][1:]) > 1e-2
        # Noise by the generator alone, and the same conditions by the dense implementation.
        draws = [torch.Generator().manual_seed(n) for n in range(2)]
        told = (
            [torch.tensor([2]), torch.tensor([1])]
            if kind == "class"
            else [value.float() for value in shown["prompt_embeds"]]
        )
        expected = continue_videos(
            independent(kind),
            [torch.zeros(0, 4, 4, 6)] * 2,
            Settings(clips=(2, 1), window=4, steps=2, guidance=3.0),
            lambda video, clip, purpose, shape, draws=draws: torch.randn(shape, generator=draws[video]),
            conditions=told,
        )
        assert difference(latents[kind], expected) < 2e-5
        video = np.zeros((1, 32, 48, 3), np.uint8)
        for wrong, message in (
            ({}, "^nothing to continue: pass video=..., class_labels=... or prompt_embeds=...$"),
            ({"class_labels": "d"}, "expected one of 3 names" if kind == "class" else "was not trained with classes"),
            (
                {"prompt_embeds": torch.zeros(2, 3)},
                "not trained with texts" if kind == "class" else r"expected \[tokens, 12\]",
            ),
            ({**shown, "height": 33}, "^height=33, width=48: must be multiples of 16$"),
            ({**shown, "video": [video] * 3, "videos": 3}, "^2 classes or texts for 3 videos"),
        ):
            with pytest.raises(ValueError, match=message):
                run(**wrong)
