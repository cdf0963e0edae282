"""Rules on values and between options: each names its option, the value, the constraint and the fix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_videogpt.config import sections
from megatron_videogpt.config.check import RANGES, check_config, load_checked
from megatron_videogpt.config.load import ConfigError, config_from_dict
from megatron_videogpt.config.options import options
from megatron_videogpt.config.problems import Report
from megatron_videogpt.config.schema import Config

from .test_config import problems_of, write

GOOD = {
    "model": {"hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "num_layers": 4},
    "train": {"global_batch_size": 8},
}


LONG = [1.0] * 8


BROKEN = [
    # values, processes, option that must be named, words of the fix
    ({"model": {"hidden_size": 66}}, 1, "model.hidden_size", "use 64"),
    ({"model": {"num_query_groups": 3}}, 1, "model.num_query_groups", "1, 2, 4"),
    (
        {"model": {"rope_scaling": {"type": "yarn", "long_factor": LONG, "short_factor": LONG}}},
        1,
        "model.rope_scaling",
        "yarn",
    ),
    (
        {"model": {"rope_scaling": {"type": "longrope", "long_factor": LONG[:7], "short_factor": LONG}}},
        1,
        "model.rope_scaling",
        "7 entries",
    ),
    ({"model": {"rope_scaling": {"type": "longrope", "long_factor": LONG}}}, 1, "model.rope_scaling", "short_factor"),
    (
        {"model": {"rope_scaling": {"type": "su", "long_factor": LONG, "short_factor": LONG, "mscale": 1}}},
        1,
        "model.rope_scaling",
        "remove mscale",
    ),
    ({"model": {"rope_theta": 0.0}}, 1, "model.rope_theta", "10000.0"),
    ({"model": {"position_table_size": 3}}, 1, "data.physics.size", "use at most 48"),
    ({"parallel": {"tensor": 3}, "model": {"num_attention_heads": 4}}, 3, "parallel.tensor", "1, 2, 4"),
    (
        {"parallel": {"tensor": 4}, "model": {"num_attention_heads": 8, "num_query_groups": 2, "hidden_size": 128}},
        2,
        "parallel.tensor",
        "multiple of 4",
    ),
    (
        {"parallel": {"tensor": 2}, "model": {"num_attention_heads": 6, "num_query_groups": 3, "hidden_size": 96}},
        2,
        "parallel.tensor",
        "use one of 1, 3",
    ),
    ({"parallel": {"tensor": 2, "context": 4}}, 8, "parallel.context", "use one of 1, 2"),
    ({"parallel": {"virtual_pipeline": 2}}, 1, "parallel.virtual_pipeline", "parallel.pipeline=2"),
    (
        {"parallel": {"pipeline": 2, "pipeline_layers": [1, 2]}},
        2,
        "parallel.pipeline_layers",
        "it has 2 with the sum 3",
    ),
    ({"parallel": {"recompute_layers": 1}}, 1, "parallel.recompute_layers", "recompute=mlp"),
    (
        {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "train": {"global_batch_size": 3}},
        2,
        "train.global_batch_size",
        "multiple of 1 data parallel",
    ),
    ({"parallel": {"tensor": 2}, "model": {"ffn_hidden_size": 127}}, 2, "parallel.tensor", "use one of 1"),
    ({"parallel": {"pipeline": 5}}, 5, "parallel.pipeline", "at most 4 stages"),
    ({"parallel": {"sequence": True}}, 1, "parallel.sequence", "parallel.tensor=2"),
    ({"parallel": {"tensor": 2, "pipeline": 2}}, 6, "parallel.tensor", "multiple of 4 processes"),
    ({"train": {"global_batch_size": 10, "micro_batch_size": 2}}, 2, "train.global_batch_size", "use 8"),
    ({"train": {"steps": 0}}, 1, "train.steps", "use for example 1000"),
    ({"train": {"precision": "fp16"}}, 1, "train.precision", "bf16, fp32"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, 1, "optimizer.betas", "below 1"),
    ({"optimizer": {"schedule": "cosine", "min_lr": 1.0}}, 1, "optimizer.min_lr", "use 0"),
    ({"objective": {"clean_retention": 1.5}}, 1, "objective.clean_retention", "from 0 to 1"),
    ({"data": {"clips": [2, 17]}}, 1, "data.clips", "at most 16"),
    ({"data": {"frame_interval": [8, 4]}}, 1, "data.frame_interval", "use [4, 8]"),
    ({"data": {"physics": {"size": 40}}}, 1, "data.physics.size", "use 48"),
    ({"data": {"physics": {"scenes": ["fall", "fly"]}}}, 1, "data.physics.scenes", "'fly' is not known"),
    ({"data": {"physics": {"scenes": []}}}, 1, "data.physics.scenes", "at least one entry"),
    ({"data": {"physics": {"difficulty": 3}}}, 1, "data.physics.difficulty", "0, 1 or 2"),
    ({"data": {"source": "videos"}}, 1, "data.path", "give the folder"),
    (
        {"data": {"source": "videos", "path": "x", "size_multiple": 24, "longest_side": 96}},
        1,
        "data.size_multiple",
        "use 32",
    ),
    ({"data": {"source": "videos", "path": "x", "longest_side": 32}}, 1, "data.longest_side", "use 64 or more"),
    ({"data": {"source": "videos", "path": "x", "longest_side": 100}}, 1, "data.longest_side", "use 112"),
    ({"data": {"source": "shards"}}, 1, "data.path", "give the folder or URL of your shards"),
    ({"data": {"source": "shards", "path": "x", "mixture": {"y": 1}}}, 1, "data.path", "name every data set in one"),
    ({"data": {"source": "shards", "mixture": {"y": 0}}}, 1, "data.mixture", "'y' has 0"),
    ({"data": {"mixture": {"y": 1}}}, 1, "data.mixture", "use data.source=videos or shards"),
    ({"data": {"min_frames": 17}}, 1, "data.min_frames", "use 0"),
    ({"data": {"cost": [0, 1e-9]}}, 1, "data.cost", "megatron-videogpt cost"),
    (
        {"data": {"pack_tokens": 4096}, "train": {"micro_batch_size": 2}},
        1,
        "train.micro_batch_size",
        "data.pack_tokens=0",
    ),
    (
        {"data": {"pack_tokens": 4096}, "train": {"global_batch_size": 3, "micro_batch_size": 1}},
        4,
        "train.global_batch_size",
        "use 4 or more",
    ),
    ({"data": {"validation_fraction": 0}}, 1, "data.validation_fraction", "0.05"),
    ({"codec": {"name": "autoencoder_kl"}}, 1, "codec.path", 'codec.name="tiny"'),
    ({"sample": {"clips": [8, 90]}}, 1, "sample.window", "use 91 or more"),
    ({"attention": {"backend": "flex"}, "train": {"platform": "cpu"}}, 1, "attention.backend", "ranged"),
    ({"attention": {"backend": "triton"}, "train": {"platform": "npu"}}, 1, "attention.backend", "ranged"),
    ({"train": {"platform": "cpu", "adaptor": "own"}}, 1, "train.adaptor", "Ascend NPUs only"),
    ({"attention": {"backend": "flash", "deterministic": True}}, 1, "attention.deterministic", "triton"),
    ({"train": {"output": ""}}, 1, "train.output", "runs/first"),
]


def merged(values: dict) -> dict:
    return {section: {**GOOD.get(section, {}), **values.get(section, {})} for section in GOOD.keys() | values.keys()}


@pytest.mark.parametrize(
    ("values", "world", "option", "fix"), BROKEN, ids=[f"{number}-{row[2]}" for number, row in enumerate(BROKEN)]
)
def test_each_rule_names_its_option_and_the_fix_and_nothing_else(
    values: dict, world: int, option: str, fix: str
) -> None:
    lines = problems_of(merged(values), world)
    assert len(lines) == 1 and lines[0].startswith(f"{option} = ") and "must" in lines[0] and fix in lines[0], lines


def test_a_sound_configuration_has_no_problems() -> None:
    assert problems_of(GOOD, 8) == []
    check_config(config_from_dict(merged({"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}})), 8)
    assert problems_of(merged({"train": {"global_batch_size": 7}}), None) == []


def test_reading_and_rules_are_reported_together_and_one_mistake_gives_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path, "x.toml", '[model]\nnum_attention_heads = "four"\n[parallel]\npipeline = 0\n[data]\nclips = [9, 3]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_checked(path, ["train.step=3"], 3)
    named = [line.split(" = ")[0] for line in caught.value.problems]
    assert named == ["model.num_attention_heads", "train.step", "parallel.pipeline", "data.clips"]


def test_wandb_must_be_installed_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert [line.partition(" = ")[0] for line in problems_of(merged({"logging": {"wandb": True}}))] == ["logging.wandb"]


def test_every_number_has_exactly_one_range() -> None:
    ranged = [name for _, _, names in RANGES for name in names.split()]

    class Noting(Report):
        """Notes the options whose range a section of others checks."""

        def check_range(self, must: str, holds: object, names: str) -> None:
            ranged.extend(names.split())

    for kind in sections.KINDS:
        sections.find(kind).rules(Noting(Config(), set()))
    numbers = [
        option.name
        for option in options()
        if option.type in (int, float)
        or (option.type not in (bool, str, dict) and option.type.__args__[0] in (int, float))
    ]
    assert sorted(ranged) == sorted(numbers)
