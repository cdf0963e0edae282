"""Reading, overriding, writing and checking configurations."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.config.check import RANGES, check_config, find_problems, load_checked
from megatron_videogpt.config.check_data import missing_paths
from megatron_videogpt.config.load import ConfigError, config_from_dict, load_config, parse_overrides, read_config
from megatron_videogpt.config.options import options
from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.config.toml import config_to_toml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "videogpt"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(values: dict, world_size: int | None = None) -> list[str]:
    return find_problems(config_from_dict(values), world_size)


def test_a_file_wins_over_its_base_and_overrides_win_over_both(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(
        tmp_path,
        "base.toml",
        '[model]\nnum_layers = 3\nhidden_size = 128\nrope_scaling = {type = "su"}\n[data.physics]\nsize = '
        "128\nfps = 12\n",
    )
    path = write(
        tmp_path / "sub",
        "child.toml",
        'base = "../base.toml"\n[model]\nhidden_size = 64\nrope_scaling = {}\n[data.physics]\nsize = 96\n',
    )
    config = load_config(
        path,
        [
            "data.physics.size=64",
            "train.output=runs/mine",
            "sample.clips=[8, 4]",
            "optimizer.betas=[0.9, 0]",
            "model.hidden_size=256",
        ],
    )
    assert (config.model.num_layers, config.model.hidden_size, config.model.rope_scaling) == (3, 256, {})
    assert (config.data.physics.size, config.data.physics.fps) == (64, 12.0)
    assert isinstance(config.data.physics.fps, float)
    assert config.train.output == "runs/mine"
    assert (config.sample.clips, config.optimizer.betas) == ((8, 4), (0.9, 0.0))
    assert config.codec == Config().codec


def test_bases_that_lead_in_a_circle_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'base = "b.toml"\n')
    path = write(tmp_path, "b.toml", 'base = "a.toml"\n')
    with pytest.raises(ConfigError, match=r"b\.toml -> a\.toml -> b\.toml"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('base = "none.toml"\n', "none.toml: there is no such"),
        ("base = 3\n", "must be the name of one TOML file"),
        ("[train\n", "must be valid TOML"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, "x.toml", text))


def test_every_mistake_is_reported_at_once_with_its_fix(tmp_path: Path) -> None:
    text = (
        "loose = 1\n[modle]\na = 1\n[train]\nlr = 1e-3\nsteps = 1e3\nseed = true\n[optimizer]\nbetas = [0.9]\nlr "
        "= nan\nwarmup_step = 4\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(
            write(tmp_path, "x.toml", text),
            ["nonsense", "data.frames=many", "parallel.sequence=1", "model=3", "data.foo=1"],
        )
    expected = {
        "'nonsense'": "section.option=value",
        "'model=3'": "section.option=value",
        "loose = 1": "no such option",
        "[modle]": "did you mean [model]?",
        "train.lr = 0.001": "did you mean optimizer.lr?",
        "train.steps = 1000.0": "must be a whole number; write for example train.steps=1000",
        "train.seed = true": "must be a whole number",
        "optimizer.betas = [0.9]": "must be a list of 2 numbers; write for example optimizer.betas=[0.9, 0.95]",
        "optimizer.lr = nan": "must be a finite number",
        "optimizer.warmup_step = 4": "did you mean optimizer.warmup_steps?",
        'data.frames = "many"': "must be a whole number",
        "parallel.sequence = 1": "must be true or false",
        "data.foo = 1": "the options of [data] are source, path",
    }
    lines = caught.value.problems
    assert len(lines) == len(expected)
    for start, content in expected.items():
        matching = [line for line in lines if line.startswith(start + ":")]
        assert len(matching) == 1 and content in matching[0], (start, lines)


def test_overrides_parse_as_toml_or_text() -> None:
    parsed = parse_overrides(
        ["a.b=3", "a.c=1e-4", "a.d=[1, 2]", "a.e=runs/x=y", 'a.f="5"', "a.g.h=true", "a.i=", "a.j=1\nk = 2"]
    )
    assert parsed == {
        "a": {"b": 3, "c": 1e-4, "d": [1, 2], "e": "runs/x=y", "f": "5", "g": {"h": True}, "i": "", "j": "1\nk = 2"}
    }


def strategy(kind: object) -> st.SearchStrategy:
    """Any value of an option's type."""
    # Lone surrogates are not text: no file can hold them.
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    number = st.floats(allow_nan=False, allow_infinity=False)
    element = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: number,
        str: text,
        bool: st.booleans(),
        dict: st.dictionaries(text, number | text | st.lists(number)),
    }
    if kind in element:
        return element[kind]
    first, *rest = kind.__args__
    length = None if rest == [Ellipsis] else 1 + len(rest)
    return st.lists(
        element[first] if first in element else strategy(first), min_size=length or 0, max_size=length or 4
    ).map(tuple)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_written_configuration_reads_back_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values: dict = {}
    for option in data.draw(
        st.lists(st.sampled_from(list(options())), unique_by=lambda option: option.name, max_size=6)
    ):
        *sections, leaf = option.name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = data.draw(strategy(option.type), label=option.name)
    config = config_from_dict(values)
    path = tmp_path_factory.mktemp("written") / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8", newline="")
    assert load_config(path) == config


def test_every_option_has_help_and_is_written() -> None:
    text = config_to_toml(Config())
    assert all(option.help and f"# {option.help}" in text for option in options())
    assert (
        len(list(options()))
        == sum(len(dataclasses.fields(section)) for section in _sections(Config)) - len(list(_sections(Config))) + 1
    )


def _sections(section: type) -> list[type]:
    below = [f.default_factory for f in dataclasses.fields(section) if dataclasses.is_dataclass(f.default_factory)]
    return [section] + [each for child in below for each in _sections(child)]


def test_names_the_schema_allows_are_the_names_that_exist() -> None:
    from megatron_videogpt.data.sources.scenes import KINDS
    from megatron_videogpt.objective.build import OBJECTIVES
    from megatron_videogpt.platforms import PLATFORMS

    choices = {option.name: option.choices for option in options()}
    assert set(choices["data.physics.scenes"]) == set(KINDS)
    assert set(choices["objective.name"]) == set(OBJECTIVES)
    assert choices["train.platform"] == ("auto", *PLATFORMS)


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
    ({"data": {"cost": [0, 1e-9]}}, 1, "data.cost", "tools/fit_cost.py"),
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


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    there = {
        "data": {"source": "videos", "path": str(tmp_path)},
        "codec": {"name": "autoencoder_kl", "path": str(tmp_path)},
    }
    assert missing_paths(config_from_dict(there)) == []
    gone = {
        "data": {"source": "videos", "path": "no/a"},
        "codec": {"name": "autoencoder_kl", "path": "no/b"},
        "train": {"init_from": "no/c"},
    }
    assert [line.split(": ")[0] for line in missing_paths(config_from_dict(gone))] == [
        'train.init_from = "no/c"',
        'data.path = "no/a"',
        'codec.path = "no/b"',
    ]
    mixed = {"data": {"source": "shards", "mixture": {"no/d": 1, "s3://bucket/e": 1, "no/f-{000..007}.tar": 1}}}
    assert [line.split(":")[0] for line in missing_paths(config_from_dict(mixed))] == ['data.mixture = "no/d"']
    assert missing_paths(config_from_dict({"data": {"path": "no/a"}, "codec": {"path": "no/b"}})) == []


# Paper, Tables 1 and 9-12: frames, frame interval, clips K, steps, learning rate.
STAGES = [
    (16, (4, 4), (16, 16), 300_000, 1e-4),
    (48, (4, 4), (2, 48), 25_000, 1e-4),
    (48, (4, 12), (2, 48), 40_000, 1e-4),
    (80, (4, 12), (2, 80), 20_000, 2e-5),
]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_the_stages_are_the_papers(stage: int) -> None:
    config = load_config(EXAMPLES / f"stage{stage}.toml")
    data, optimizer = config.data, config.optimizer
    assert (data.frames, data.frame_interval, data.clips, config.train.steps, optimizer.lr) == STAGES[stage - 1]
    assert (optimizer.betas, optimizer.weight_decay, optimizer.warmup_steps, optimizer.schedule) == (
        (0.9, 0.95),
        0.1,
        1000,
        "constant",
    )
    assert (optimizer.eps, optimizer.clip_grad, config.train.global_batch_size, data.longest_side) == (
        1e-5,
        1.0,
        320,
        320,
    )
    shape = config.model
    assert (shape.num_layers, shape.hidden_size, shape.ffn_hidden_size, shape.num_attention_heads, shape.kv_heads) == (
        32,
        3072,
        8192,
        32,
        32,
    )
    assert (
        config.sample.history,
        config.sample.clips,
        config.sample.window,
        config.sample.steps,
        config.sample.guidance,
    ) == (56, (24,), 80, 50, 3.0)
    previous = load_config(EXAMPLES / f"stage{stage - 1}.toml").train.output if stage > 1 else ""
    assert config.train.init_from == previous
    check_config(config, 320)


def test_the_base_files_long_rope_is_the_published_one(reference: Path) -> None:
    import json

    published = json.loads((reference / "released_model.json").read_text())["omnigen_v1_rope"]
    model: ModelConfig = load_config(EXAMPLES / "base.toml").model
    assert model.rope_scaling == published["rope_scaling"]
    assert model.max_position_embeddings == published["max_position_embeddings"]
    assert model.original_max_position_embeddings == published["original_max_position_embeddings"]


def test_the_quickstart_runs_on_two_processes() -> None:
    config, problems, _ = read_config(EXAMPLES / "quickstart.toml")
    assert problems == [] and find_problems(config, 2) == [] and missing_paths(config) == []
    assert (config.parallel.tensor, config.parallel.sequence, config.train.output, config.eval.final_scenes) == (
        2,
        True,
        "runs/quickstart",
        64,
    )


def test_every_number_has_exactly_one_range() -> None:
    ranged = [name for _, _, names in RANGES for name in names.split()]
    numbers = [
        option.name
        for option in options()
        if option.type in (int, float)
        or (option.type not in (bool, str, dict) and option.type.__args__[0] in (int, float))
    ]
    assert sorted(ranged) == sorted(numbers)
