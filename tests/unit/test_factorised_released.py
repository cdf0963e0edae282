"""The factorised network at its released sizes: on the meta device, what `check` counts of the recipe, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.config.check import load_checked
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.model.tensors import from_hf, shard, to_hf, unshard
from megatron_videogpt.objective.build import parameter_table
from megatron_videogpt.objective.frame_prompt.factorised.activations import layer_bytes
from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
from megatron_videogpt.objective.frame_prompt.factorised.published import model_of, variant_of
from megatron_videogpt.plan.estimate import objective_work
from megatron_videogpt.platforms import Platform

ROOT = Path(__file__).resolve().parents[2]
BASE = str(ROOT / "examples" / "vidgpt" / "base.toml")
TEXT = """condition.kind=text condition.encoder=t5 condition.encoder_path=none condition.width=4096
condition.max_tokens=120 data.frames=65 objective.prompts=[1,17,33,49] objective.chunk=16
objective.factorised.places=65 sample.clips=[16] sample.window=65""".split()
OVERRIDES: dict[str, list[str]] = {
    "sky_timelapse": [],
    "sky_timelapse_no_mask_channel": ["objective.factorised.mask_channel=false"],
    "sky_timelapse_no_prefix_enhance": ["objective.factorised.enhance=none", "objective.factorised.mask_channel=false"],
    "text_to_video": TEXT,
}
"""Of the recipe that others start from."""


def released() -> dict[str, Any]:
    """Variant -> its settings and the shapes of its tensors."""
    path = ROOT / "tests" / "golden" / "vidgpt" / "released_model.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["variants"]
    return found


def tensors_of(case: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes by key, all blocks written out; a table that is not trained is a buffer there."""
    keys, found = case["keys"], {}
    for key, shape in keys.items():
        head = key.startswith("blocks.1.")
        for block in range(1, case["config"]["depth"]) if head else (0,):
            found[key.replace("blocks.1.", f"blocks.{block}.") if head else key] = shape
    buffers = {key: shape for key, shape in case["buffers"].items() if key == "y_embedder.y_embedding"}
    return found | buffers


@pytest.mark.parametrize("name", released())
def test_networks_have_the_released_tensors(
    name: str, platform: Platform, processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of megatron-core's modules on the meta device; cut for two tensor parallel ranks and joined again, too."""
    from megatron_videogpt.model.init import named
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of

    case, meta = released()[name], torch.device("meta")
    channels = case["config"]["in_channels"]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: meta)
    model, variant = model_of(case["config"]), variant_of(case["config"], name)
    config = Config(model=model, train=TrainConfig(precision="fp32"))
    network = VideoGPT(config, channels, replace(platform, device=meta), "ranged", ends_of(variant))
    found = {}
    for entry, parameter in named(network, model):
        assert parameter.device == meta and parameter.dtype == torch.float32
        whole = to_hf(entry, parameter.detach(), model)
        found[entry.hf] = list(whole.shape)
        parts = [shard(entry, from_hf(entry, whole, model), rank, 2) for rank in range(2)]
        assert to_hf(entry, unshard(entry, parts), model).shape == whole.shape
        halved = entry.rule.split is not None
        assert all(part.numel() == parameter.numel() // (2 if halved else 1) for part in parts), entry.hf
    assert found == tensors_of(case)


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_recipe_is_the_released_network(name: str) -> None:
    case, config = released()[name], load_checked(BASE, OVERRIDES[name], 1)
    assert config.model == replace(model_of(case["config"]), init_std=config.model.init_std)
    assert variant_of_run(config) == variant_of(case["config"], name)
    counts = component_parameters(parameter_table(config), config.model, 4)
    assert sum(counts.values()) == case["num_parameters"]


def test_activations_by_hand() -> None:
    """33 frames of 256 patches on one rank in float32; a stream is one tensor as wide as the residual stream."""
    options = ["train.precision=fp32", "train.micro_batch_size=1", "train.global_batch_size=1"]
    config = load_checked(BASE, [*options, "parallel.recompute=none"], 1)
    work = objective_work(config)
    stream, sums, norms, frames = 4 * 8448 * 1152, 4 * 8448 * 16, 2 * 8 * 8448, 8 * 4 * 33 * 1152
    # In space 4 and 4 of the attention, to the prompt 2 and 4, in time 1 and 5; 5 behind that, and twice 4 inside.
    middle = (8 + 6 + 6 + 5 + 8) * stream + 3 * sums + norms + frames
    assert layer_bytes(config, work.variant, work.largest((256, 256)), (33, 0)).kept("none") == middle
    # The map that has the mask channel keeps its input; the last layer leaves out 25 of 33 frames where it can.
    first, share = (1 + 1 / 1152) * stream, 8 / 33
    last = (1 - share) * ((5 + 8) * stream + sums + norms / 2) + (5 - 2 - 2 * share) * stream
    found = work.activations((256, 256))
    assert found.kept == pytest.approx(28 * middle + first - last + 3 * share * stream)
    assert found.working < 10 * stream
    full = objective_work(load_checked(BASE, options, 1)).activations((256, 256))
    assert full.kept == pytest.approx((28 + 3 * share) * stream) and full.working > middle
    _, (label, _, shown), _ = work.facts((256, 256), (256, 256))[1:]
    assert label == "activations of a rank, these layers" and shown == f"{found.kept / 1e9:.3g} GB"
