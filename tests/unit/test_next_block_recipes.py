"""The recipes of next block prediction against the published sizes and settings, and every rule of a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schedules import learning_rate
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.build import parameter_table

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "nbp"
# name: (learning rate, warm-up, last tick of the schedule, batch, devices, videos of a device's micro-batch, precision)
PUBLISHED = {
    "k600_700M": (1e-3, 10_000, 4_000_000, 64, 32, 2, "fp32"),
    "k600_1.2B": (5e-4, 10_000, 4_000_000, 64, 64, 1, "fp32"),
    "k600_3B": (2e-4, 10_000, 4_000_000, 64, 32, 1, "bf16"),
    "ucf_700M": (6e-4, 5_000, 100_000, 256, 64, 4, "bf16"),
    "ucf_1.2B": (6e-4, 5_000, 100_000, 256, 64, 4, "bf16"),
    "ucf_3B": (6e-4, 5_000, 100_000, 256, 64, 4, "bf16"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_one(name: str) -> None:
    config = load_config(RECIPES / f"{name.lower()}.toml")
    rate, warmup, last, batch, devices, each, precision = PUBLISHED[name]
    assert find_problems(config, devices) == []
    sizes = json.loads((ROOT / "tests" / "golden" / "nbp" / "released_model.json").read_text())["sizes"][name]
    model, options, train = config.model, config.optimizer, config.train
    ours = [model.num_layers, model.num_attention_heads, model.hidden_size, model.ffn_hidden_size]
    assert ours == [sizes[key] for key in ("num_layers", "num_heads", "hidden_size", "ffn_size")]
    assert (model.max_position_embeddings, config.objective.block) == (sizes["max_positions"], sizes["block"])
    assert (config.objective.layout, config.codec.name) == (sizes["mode"], "fsq")
    assert (model.dropout, options.weight_decay, options.betas, options.eps) == (0.1, 0.01, (0.9, 0.95), 1e-8)
    assert (train.global_batch_size, train.micro_batch_size, train.precision) == (batch, each, precision)
    # The published sum of accumulated gradients is clipped at 1.
    assert options.clip_grad == 1 / (batch // (devices * each)) and train.seed == 1234
    assert learning_rate(options, warmup // 2 + 1, train.steps) == rate / 2 and train.steps == last
    assert (config.data.frames, config.data.longest_side, config.data.size_multiple) == (5, 128, 128)


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "videos"), [("ucf", 5e-5, 2000, 9537), ("k600", 1e-4, 100, 384_000)]
)
def test_a_tokenizer_recipe_is_the_published_one(name: str, rate: float, epochs: int, videos: int) -> None:
    """Table 5, and the size of the published network."""
    config = load_config(RECIPES / f"tokenizer_{name}.toml")
    assert find_problems(config, 64) == []
    options, train, objective = config.optimizer, config.train, config.objective
    assert train.global_batch_size == 256 and abs(train.steps - epochs * videos / 256) < 1
    assert (options.lr, options.schedule, options.min_lr, options.weight_decay) == (rate, "linear", 0.0, 0.0)
    assert options.warmup_steps == round(0.01 * train.steps)
    assert (objective.feature, objective.feature_weight, objective.adversarial) == ("lpips", 0.1, 0.1)
    assert (config.data.frames, config.data.longest_side, config.data.size_multiple) == (17, 128, 128)
    assert sum(component_parameters(parameter_table(config), config.model, 3).values()) == 370_372_105


@pytest.mark.parametrize("name", ["physics", "physics_classes"])
def test_the_small_recipes_fit_the_shipped_tokenizer_and_another(name: str, tmp_path: Path) -> None:
    assert find_problems(load_config(RECIPES / f"{name}.toml"), 2) == []
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    settings = {"_class_name": "FSQTokenizer", "width": 8, "groups": 4, "units": 1, "levels": [8, 5, 5]}
    (folder / "config.json").write_text(json.dumps(settings))
    config = load_config(RECIPES / f"{name}.toml", ["codec.name=fsq", f"codec.path={folder}"])
    assert find_problems(config, 2) == []
