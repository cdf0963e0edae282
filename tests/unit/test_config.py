"""Reading, overriding, writing and checking configurations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.config import sections
from megatron_videogpt.config.check import check_config, find_problems
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
        == sum(len(dataclasses.fields(section)) for section in _sections(Config())) - len(_sections(Config())) + 1
    )


def _sections(section: Any) -> list[Any]:
    values = [getattr(section, f.name) for f in dataclasses.fields(section)]
    return [section] + [each for value in values if dataclasses.is_dataclass(value) for each in _sections(value)]


def test_names_the_schema_allows_are_the_names_that_exist() -> None:
    from megatron_videogpt.data.sources.scenes import KINDS
    from megatron_videogpt.platforms import PLATFORMS

    choices = {option.name: option.choices for option in options()}
    assert set(choices["data.physics.scenes"]) == set(KINDS)
    objectives = ("next_clip_diffusion", "frame_prompt_diffusion", "next_block_prediction", "tokenizer")
    assert choices["objective.name"] == sections.names("objective") == objectives
    assert choices["train.platform"] == ("auto", *PLATFORMS)


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
    assert (config.parallel.model_size, config.train.precision) == (1, "auto")
    assert (config.train.output, config.eval.final_scenes) == ("runs/quickstart", 64)
