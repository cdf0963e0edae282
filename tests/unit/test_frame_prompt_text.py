"""Texts of the encoders as what the factorised network attends: T5 of a local folder, words on the built-in scenes;
which tokens are seen, what a dropped text becomes, and guidance by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.codec.geometry import codec_geometry
from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.objective.frame_prompt.factorised.objective import FactorisedPrompt
from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
from megatron_videogpt.objective.frame_prompt.factorised.rows import Text, assemble
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.platforms import Platform
from tests import factorised_prompt as small
from tests.factorised_dense import error
from tests.texts import CAPTIONS, LONGEST, options_of, text_t5

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "vidgpt" / "physics_factorised.toml"
ENCODERS = ("t5", "words")
Build = Callable[[Config], Any]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConditionConfig]:
    return {"t5": options_of("t5", text_t5(tmp_path_factory.mktemp("text") / "t5")), "words": options_of("words")}


def config_of(condition: ConditionConfig) -> Config:
    """The recipe on scenes, with a text and the small network."""
    config = load_config(RECIPE, ["train.precision=fp32", "objective.prompts=[1,4]", "objective.chunk=2"])
    return replace(config, condition=condition, model=small.MODEL)


@pytest.fixture(scope="module")
def build(platform: Platform, processes: None) -> Build:
    """The network with the dense twin's weights."""
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of

    def made(config: Config) -> Any:
        variant = variant_of_run(config)
        network = VideoGPT(config, small.CHANNELS, platform, "ranged", ends_of(variant))
        weights = small.weights_of(variant)
        load_released(network, small.MODEL, lambda entry: weights[entry.hf])
        return network.eval()

    return made


def sample_of(features: Tensor | None, dropped: bool = False) -> Sample:
    latents = normal(7, "latents", (6, small.CHANNELS, 4, 6))
    return Sample(3, "", latents, None, (6,), condition=features, dropped=dropped)


def objective_of(config: Config) -> FactorisedPrompt:
    options = config.objective
    return FactorisedPrompt(variant_of_run(config), 2, options.prompts, options.chunk, 100)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pass_follows_the_text_and_no_text_stands_for_a_dropped_one(
    build: Build, encoders: dict[str, ConditionConfig], name: str
) -> None:
    """Each against the dense twin: a text, another one, and a dropped one, whose table has the mask of its text."""
    config = config_of(encoders[name])
    network, objective, variant = build(config), objective_of(config), variant_of_run(config)
    weights = small.weights_of(variant)
    first, second = build_encoder(config.condition).encode(CAPTIONS[:2])
    outputs = []
    for features, dropped in ((first, False), (second, False), (first, True), (second, True), (None, False)):
        sample = sample_of(features, dropped)
        video, found = objective.video(sample), network(objective.prepare([sample], 1)).detach()
        # The twin takes texts as the published network does, of the most tokens and with a mask.
        rows = 1 if features is None else len(features)
        words = F.pad(video.text.tokens, (0, 0, 0, LONGEST - rows))
        padded = replace(video, text=Text(words, torch.arange(LONGEST) < rows, video.text.dropped))
        assert error(found, small.patches_of(small.twin(weights, padded, variant)[video.prompt :])) <= 1e-5
        outputs.append(found)
        if dropped or features is None:
            # The published table, row by row, as far as the text goes.
            table = Text(weights["y_embedder.y_embedding"][:rows])
            instead = assemble([replace(video, text=table)], 1, variant, 2)
            assert error(network(instead).detach(), found) <= 1e-6
    for number, one in enumerate(outputs):
        for other in outputs[number + 1 :]:
            assert error(one, other) > 1e-3


def test_padded_texts_with_their_mask_are_the_unpadded_ones(build: Build, encoders: dict[str, ConditionConfig]) -> None:
    """As published: T5 on texts padded to their most tokens, of which those of the mask are seen."""
    transformers = pytest.importorskip("transformers")
    config = config_of(encoders["t5"])
    network, objective, variant = build(config), objective_of(config), variant_of_run(config)
    encoder = build_encoder(config.condition)
    t5 = transformers.T5EncoderModel.from_pretrained(config.condition.encoder_path).eval()
    for caption in CAPTIONS:
        (features,) = encoder.encode([caption])
        ids = torch.zeros(1, LONGEST, dtype=torch.int64)
        ids[0, : len(features)] = torch.tensor(encoder._ids([caption])[0])  # type: ignore[attr-defined]
        mask = torch.arange(LONGEST) < len(features)
        with torch.no_grad():
            padded = t5(ids, attention_mask=mask[None].long()).last_hidden_state[0]
        for dropped in (False, True):
            sample = sample_of(features, dropped)
            video = replace(objective.video(sample), text=Text(padded, mask, dropped))
            found = network(assemble([video], 1, variant, 2)).detach()
            assert error(found, network(objective.prepare([sample], 1)).detach()) <= 1e-5


def test_scenes_bring_their_captions_as_words(build: Build) -> None:
    """Through the data of the recipe, as training reads it; some are dropped."""
    config = config_of(options_of("words", max_tokens=40, dropout=0.4))
    source = open_source(config.data, codec_geometry(config.codec), Conditioning(config.condition))
    plans = source.train.plans(0, range(12))
    samples = [source.conditioning.applied(source.train.job(plans[number]).read()) for number in range(12)]
    encoder = build_encoder(config.condition)
    texts = [torch.as_tensor(sample.condition) for sample in samples]
    for sample, text in zip(samples, texts):
        assert len(sample.caption.split()) > 2 and torch.equal(text, encoder.encode([sample.caption])[0])
    assert 2 < sum(sample.dropped for sample in samples) < 10 and len({sample.caption for sample in samples}) > 6
    objective, network = objective_of(config), build(config)
    latents = normal(1, "latents", (6, small.CHANNELS, 4, 6))
    alike = [
        replace(sample, pixels=None, mean=latents, clips=(6,), key=5, condition=text)
        for sample, text in zip(samples, texts)
    ]
    together = network(objective.prepare(alike, 1)).detach().chunk(12)
    for sample, found in zip(alike, together):
        assert error(found, network(objective.prepare([sample], 1)).detach()) <= 1e-5
    dropped = [number for number, sample in enumerate(samples) if sample.dropped]
    said = next(number for number, sample in enumerate(samples) if not sample.dropped)
    assert error(together[said], together[dropped[0]]) > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_sampling_follows_the_text_by_its_guidance(
    build: Build, encoders: dict[str, ConditionConfig], name: str
) -> None:
    """One step is linear in the predicted noise: guidance s is "no text" and s times what the text adds to it."""
    from megatron_videogpt.objective.build import build_sampler

    config = config_of(encoders[name])
    network = build(config)
    wanted = replace(config.sample, clips=(2,), window=6, steps=1, guidance=1.0, cache=False)
    sampler = build_sampler([network], config, torch.device("cpu"))
    assert sampler is not None
    (text,) = build_encoder(config.condition).encode(["red"])
    given = normal(2, "given", (4, small.CHANNELS, 4, 6))

    def made(features: Tensor | None, **more: Any) -> Tensor:
        (clips,) = sampler.rollout([given], replace(wanted, **more), [0], 0, [features])
        return clips[0]

    # "No text" with the mask of this one: the table in its place, as a text.
    table = small.weights_of(variant_of_run(config))["y_embedder.y_embedding"]
    nothing, told = made(table[: len(text)]), made(text)
    assert error(told, nothing) > 1e-3
    for scale in (3.0, 7.5):
        assert error(made(text, guidance=scale), nothing + scale * (told - nothing)) <= 1e-4
    # Where there is nothing to follow, guidance changes nothing.
    assert error(made(None, guidance=5.0), made(None)) <= 1e-5
    several = [made(text, steps=4, guidance=scale) for scale in (1.0, 7.5)]
    assert all(bool(clip.isfinite().all()) for clip in several) and error(*several) > 1e-3
