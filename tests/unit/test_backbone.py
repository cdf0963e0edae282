"""Options of the backbone before anything is built: refusals in one line, counts of parameters and FLOPs, decay."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.model.flops import component_parameters, layer_parameters, sharded_parameters, unscored_flops
from megatron_videogpt.objective.next_clip.parameters import TABLE
from megatron_videogpt.plan.estimate import objective_work
from megatron_videogpt.plan.report import print_report
from tests import backbone

SIZES: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 8,
    "ffn_hidden_size": 20,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": 33,
    "original_max_position_embeddings": 33,
}
EVERY = list(
    itertools.product(("rms", "layer"), ("swiglu", "gelu", "gelu_tanh"), (False, True), ("rope", "learned", "none"))
)


@pytest.mark.parametrize(("norm", "activation", "biases", "positions"), EVERY)
def test_parameters_and_flops_of_every_combination_by_hand(
    norm: str, activation: str, biases: bool, positions: str
) -> None:
    model = ModelConfig(**SIZES, norm=norm, activation=activation, biases=biases, positions=positions, dropout=0.1)
    norms, bias = (16 if norm == "layer" else 8), int(biases)
    inner = 40 if activation == "swiglu" else 20
    # Queries 8, keys 4 and values 4 wide.
    qkv, out, first, second = 16 * (8 + bias), 8 * (8 + bias), inner * (8 + bias), 8 * (20 + bias)
    assert layer_parameters(model) == 2 * norms + qkv + out + first + second
    counts = component_parameters(TABLE, model, 4)
    assert counts["decoder.layers"] == 3 * layer_parameters(model) and counts["decoder.final_layernorm"] == norms
    assert counts.get("position_embedding.weight", 0) == (33 * 8 if positions == "learned" else 0)
    # Two ranks: what stands behind a sum over ranks, and norms, are whole on each.
    layer, before, after = sharded_parameters(TABLE, model, 4, 2)
    assert layer == 2 * norms + (qkv + first) // 2 + 8 * 8 // 2 + 8 * 20 // 2 + 2 * 8 * bias
    plain = sharded_parameters(TABLE, ModelConfig(**SIZES), 4, 2)
    assert (before - plain[1], after - plain[2]) == (33 * 8 if positions == "learned" else 0, norms - 8)
    # A row that nobody reads needs in the last layer its first norm, key and value.
    needed = norms + 8 * (8 + bias)
    assert unscored_flops(model, 10, 0) == 6 * 10 * (layer_parameters(model) - needed)


def test_every_option_has_its_own_parameters_in_the_table() -> None:
    for name in backbone.OPTIONS:
        tiny = backbone.tiny_of(name)
        weights, _, _ = backbone.truth(name)
        config = backbone.config_of(tiny)
        shapes = {entry.hf: entry.shape(config.model, tiny.channels) for entry in TABLE.entries(config.model)}
        assert shapes == {key: tuple(value.shape) for key, value in weights.items()}, name
        assert sum(map(math.prod, shapes.values())) == sum(component_parameters(TABLE, config.model, 4).values())


LONG = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"norm": "batch"}, "model.norm = \"batch\": must be one of rms, layer; 'batch' is not known"),
        ({"activation": "relu"}, 'model.activation = "relu": must be one of swiglu, gelu, gelu_tanh'),
        ({"positions": "sine"}, 'model.positions = "sine": must be one of rope, learned, none'),
        ({"dropout": 1.0}, "model.dropout = 1.0: must be at least 0 and below 1"),
        (
            {"positions": "learned", "rope_scaling": LONG},
            "must be empty with model.positions = learned, which rotates nothing; use {}, or model.positions=rope",
        ),
        ({"positions": "none", "rope_scaling": LONG, "max_position_embeddings": 5}, "must be empty with"),
    ],
)
def test_a_wrong_option_is_one_line(model: dict[str, Any], told: str) -> None:
    (line,) = find_problems(config_from_dict({"model": model}), 1)
    assert told in line


def learned(rows: int, **data: Any) -> Config:
    model = SIZES | {"positions": "learned", "max_position_embeddings": rows, "position_table_size": 8}
    return config_from_dict({"model": model, "data": data, "codec": {"name": "tiny"}})


def test_too_few_learned_positions_are_refused() -> None:
    from megatron_videogpt.codec.geometry import expected_geometry
    from megatron_videogpt.data.packing import check_positions
    from megatron_videogpt.data.sources.open import open_source

    data = {"source": "physics", "frames": 5, "clips": [1, 5], "physics": {"size": 64}}
    enough = learned(5 * 18, **data)
    work = objective_work(enough)
    # 64 pixels are 4 patches of 2 x 8 pixels; a frame has two tokens more.
    assert work.positions(5, (64, 64)) == 5 * 18
    splits = (lambda source: (source.train, source.validation))(
        open_source(enough.data, expected_geometry(enough.codec))
    )
    check_positions(enough, work, *splits)
    few = replace(enough, model=replace(enough.model, max_position_embeddings=89))
    told = r"^model\.max_position_embeddings = 89: must be at least 90, the positions of the longest s[^\n]*use 90"
    with pytest.raises(UserError, match=told):
        check_positions(few, work, *splits)
    with pytest.raises(UserError, match=told):
        print_report(few, 1)
    check_positions(replace(few, model=replace(few.model, positions="rope")), work, *splits)


@pytest.mark.usefixtures("processes")
def test_sampling_refuses_positions_that_were_not_learned() -> None:
    import torch

    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser
    from tests.parity.test_dense import build

    tiny = backbone.tiny_of("all")
    model, config = build(tiny, backbone.truth("all")[0])
    for cache in (False, True):
        denoiser = build_denoiser(
            [model], replace(config, sample=replace(config.sample, cache=cache)), torch.device("cpu")
        )
        history, clip = torch.zeros(2, 4, 4, 6), torch.zeros(1, 4, 4, 6)
        denoiser.begin([None])
        denoiser.remember([history], [0])
        denoiser.predict([clip], 0.5, False)
        with pytest.raises(UserError, match="= 24: must be at least 32, the positions of the history and the clip"):
            denoiser.begin([None])
            denoiser.remember([torch.zeros(3, 4, 4, 6)], [0])
            denoiser.predict([clip], 0.5, False)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_matrices_decay_and_learned_positions_never(decay: str) -> None:
    from megatron_videogpt.model.init import named
    from megatron_videogpt.train.optimizer import build_optimizer, wrap
    from tests.parity.test_dense import build

    for name in ("all", "biases", "norm"):
        model, config = build(backbone.tiny_of(name), backbone.truth(name)[0])
        config = replace(config, optimizer=replace(config.optimizer, decay=decay, weight_decay=0.3))
        chunks = wrap(config, [model])
        optimizer = build_optimizer(config, chunks)
        (part,) = getattr(optimizer, "chained_optimizers", [optimizer])
        rates = {
            parameter: part.optimizer.param_groups[group]["weight_decay"]
            for parameter, (group, _) in part.model_param_group_index_map.items()
        }
        for entry, parameter in named(model, config.model):
            table = entry.name == "position_embedding.weight"
            spared = entry.name.endswith(".bias") or "norm" in entry.name
            expected = 0.0 if table or (spared and decay == "matrices") else 0.3
            assert rates[parameter] == expected, entry.name
