"""The recipes of frame as prompt against the published sizes and settings, and every rule of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import load_config
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.build import parameter_table
from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
from megatron_videogpt.objective.frame_prompt.factorised.published import settings_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "vidgpt"
TEXT = (65, (1, 17, 33, 49), 16)
# name: frames, prompts, chunk; devices, batch, steps, guidance; the variant of released_model.json
PUBLISHED: dict[str, tuple[tuple[int, tuple[int, ...], int], tuple[int, int, int, float], str]] = {
    "base": ((33, (1, 9, 17, 25), 8), (1, 8, 11_000, 1.0), "sky_timelapse"),
    "skytimelapse": ((33, (1, 9, 17, 25), 8), (1, 8, 11_000, 1.0), "sky_timelapse"),
    "msrvtt": (TEXT, (144, 144, 21_000, 7.5), "text_to_video"),
    "ucf101": (TEXT, (8, 8, 11_000, 7.5), "text_to_video"),
}


def released() -> dict[str, Any]:
    path = ROOT / "tests" / "golden" / "vidgpt" / "released_model.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["variants"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_one(name: str) -> None:
    config = load_config(RECIPES / f"{name}.toml")
    (frames, prompts, chunk), (devices, batch, steps, guidance), variant = PUBLISHED[name]
    assert find_problems(config, devices) == []
    data, options, train, sample = config.data, config.optimizer, config.train, config.sample
    factorised = config.objective.factorised
    assert (data.frames, config.objective.prompts, config.objective.chunk) == (frames, prompts, chunk)
    assert max(prompts) + chunk == frames == factorised.places == sample.window
    assert (train.global_batch_size, train.steps, train.precision) == (batch, steps, "bf16")
    assert (options.lr, options.schedule, options.warmup_steps, options.weight_decay) == (2e-5, "constant", 0, 0.0)
    assert (options.betas, options.clip_grad, options.ema_decay) == ((0.9, 0.999), 1.0, 0.9999)
    assert (factorised.enhance, factorised.enhance_frames, factorised.mask_channel) == ("prev_frames", 3, True)
    assert (factorised.prompt_step, factorised.sample_prompt_step, factorised.solver) == (100, 50, "ddpm")
    assert (factorised.time, factorised.positions) == ("causal", "cyclic")
    assert (sample.steps, sample.guidance, sample.history, set(sample.clips)) == (100, guidance, 1, {chunk})
    assert (data.longest_side, data.size_multiple, config.codec.name) == (256, 256, "autoencoder_kl")
    sizes = released()[variant]
    assert settings_of(config.model, variant_of_run(config), 4, (32, 32)) == sizes["config"]
    counted = sum(component_parameters(parameter_table(config), config.model, 4).values())
    assert counted == sizes["num_parameters"]


def test_texts_are_those_of_the_paper() -> None:
    condition = load_config(RECIPES / "msrvtt.toml").condition
    assert (condition.kind, condition.encoder, condition.width, condition.max_tokens) == ("text", "t5", 4096, 120)
    assert condition.dropout == 0.1 and condition.text_from == "caption"
    ucf = load_config(RECIPES / "ucf101.toml")
    assert (
        ucf.condition.text_from == "label" and ucf.train.init_from == load_config(RECIPES / "msrvtt.toml").train.output
    )


def test_the_variants_that_a_recipe_names_hold() -> None:
    """Those of the paper's Table 4, in the comment of the recipe for SkyTimelapse."""
    text = (RECIPES / "skytimelapse.toml").read_text(encoding="utf-8")
    words = next(line for line in text.splitlines() if line.startswith("#   data.frames=49"))
    longer = words.removeprefix("#").split()
    for overrides in (longer, ["objective.factorised.enhance=none"], [*longer, "objective.factorised.enhance=none"]):
        config = load_config(RECIPES / "skytimelapse.toml", overrides)
        assert find_problems(config, 1) == []
    assert config.data.frames == 41 + 8
