"""The last layer computes scored rows only: the same loss and gradients, in any order of micro-batches, from fewer
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.config.derived import scores_rows_only
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config, ParallelConfig
from megatron_videogpt.objective.work import Work
from megatron_videogpt.plan.memory import head_bytes, layer_bytes
from megatron_videogpt.sequence.row import Row

CHANNELS = 4
CLIPS = ((1, 2, 1), (3, 1))
# Fewer rows may be multiplied in another order.  A sum of n products is off by the unit roundoff (2^-24) times the root
# of n; here n is 208 at most, and 3 layers of 4 products, with as many in the backward pass, follow each other.
LIMIT = 24 * 208**0.5 * 2**-24


pytestmark = pytest.mark.usefixtures("processes")


def row_of(clips: tuple[int, ...]) -> Row:
    """A packed row of one sample and a few padding tokens."""
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
    from megatron_videogpt.objective.noise import normal

    mean = normal(len(clips), "latents", (sum(clips), CHANNELS, 8, 8))
    return NextClipDiffusion(2, 32).prepare([Sample(key=1, name="1", mean=mean, logvar=None, clips=clips)], 16)


def config_of(recompute: str, layers: int = 3, count: int = 0) -> Config:
    return config_from_dict(
        {
            "model": {
                "num_layers": layers,
                "hidden_size": 96,
                "ffn_hidden_size": 208,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "position_table_size": 32,
            },
            "parallel": {"recompute": recompute, "recompute_layers": count},
            "train": {"precision": "fp32"},
        }
    )


def built(recompute: str = "none", layers: int = 3, count: int = 0, backend: str = "ranged") -> Any:
    """A model whose output is not zero."""
    from megatron_videogpt.model.init import initialise
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.platforms import activate

    config = config_of(recompute, layers, count)
    model = build_network(config, CHANNELS, activate("cpu"), backend)
    initialise(model, config.model, CHANNELS, seed=0)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.startswith("head.") or name.endswith(".bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def loss_of(model: Any, row: Row) -> Tensor:
    return (model(row) - row.target).square().mean()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        assert value.abs().max() > 0, f"{name} has no gradient to compare"
        assert (found[name] - value).abs().max() <= LIMIT * value.abs().max(), name


@pytest.mark.parametrize(("recompute", "count"), [("none", 0), ("selective", 0), ("mlp", 0), ("full", 0), ("full", 2)])
@pytest.mark.parametrize("backend", ["ranged", "reference"])
def test_loss_and_gradients_are_those_of_all_rows(recompute: str, count: int, backend: str) -> None:
    model, row = built(recompute, count=count, backend=backend), row_of(CLIPS[0])
    found = loss_of(model, row)
    found.backward()
    mine = gradients(model)
    model.scored_only = False
    wanted = loss_of(model, row)
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=LIMIT, atol=0)
    close(mine, gradients(model))


def rows_seen(model: Any, run: Callable[[], Any]) -> list[int]:
    """Rows that the feed-forward of each layer, the final norm and the head's linear layer get."""
    seen: list[int] = []
    modules = [*(layer.mlp for layer in model.decoder.layers), model.decoder.final_layernorm, model.head.linear]
    hooks = [module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape[0])) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_which_rows_are_computed() -> None:
    model, row = built(), row_of(CLIPS[0])
    every, scored = row.length, len(row.scored_rows)
    assert scored < every / 2 + 16
    assert rows_seen(model, lambda: model(row)) == [every, every, scored, scored, scored]
    # Without gradients the layers' outputs are whole, as the comparison with recorded intermediates wants them.
    with torch.no_grad():
        assert rows_seen(model, lambda: model(row)) == [every, every, every, every, scored]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_micro_batches_in_flight_do_not_mix(recompute: str) -> None:
    """As in a pipeline: two forward passes, then the backward passes, each with its own rows."""
    model, rows = built(recompute), [row_of(clips) for clips in CLIPS]
    wanted = []
    for row in rows:
        loss_of(model, row).backward()
        wanted.append(gradients(model))
    assert len(rows[0].scored_rows) == len(rows[1].scored_rows) and not torch.equal(
        rows[0].scored_rows, rows[1].scored_rows
    )
    losses = [loss_of(model, row) for row in rows]
    for loss, gradient in zip(losses, wanted):
        loss.backward()
        close(gradients(model), gradient)


def saved_bytes(run: Callable[[], Any], outside: list[Tensor]) -> int:
    """Bytes of all storages that autograd holds after `run`, but for those of `outside`."""
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (held.append(x), x)[1], lambda x: x):
        result = run()
    known = {x.untyped_storage().data_ptr() for x in outside}
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in held}
    del result
    return sum(storage.nbytes() for storage in storages.values() if storage.data_ptr() not in known)


@pytest.mark.parametrize("recompute", ["none", "selective", "mlp"])
def test_it_keeps_what_the_estimate_says(recompute: str) -> None:
    model, row = built(recompute), row_of(CLIPS[0])
    config, scored = config_of(recompute), len(row.scored_rows)
    work = Work(tokens=row.length, pairs=0, scored=scored)
    outside = [*model.parameters(), row.intervals]
    found = saved_bytes(lambda: loss_of(model, row), outside)
    model.scored_only = False
    whole = saved_bytes(lambda: loss_of(model, row), outside)
    layer, last = layer_bytes(config, row.length), layer_bytes(config, row.length, scored)
    norm = (row.length - scored) * 4 * (96 + 1)
    assert whole - found == pytest.approx(layer.kept(recompute) - last.kept(recompute) + norm, rel=0.01)
    # The head's four tensors, and the final norm of scored rows.
    assert head_bytes(config, layer, work)[0] == pytest.approx(4 * (scored * (5 * 96 + 1)))


def test_embedding_keeps_row_numbers() -> None:
    """Of a row's tokens, not of their width: the values that are put into place are not needed again."""
    model, row = built(layers=1), row_of(CLIPS[0])
    fields = [*row.units.values(), *(value for stream in row.streams.values() for value in stream.values.values())]
    fields += [row.positions, *(stream.rows for stream in row.streams.values())]
    held = saved_bytes(lambda: model.embedding(row), [*model.parameters(), *fields])
    frames = len(row.counted)
    network = 4 * frames * (256 + 2 * 96)
    assert held <= 8 * row.length * 2 + network + 1024 < 4 * 96 * row.length


def test_names_are_those_of_a_plain_layer() -> None:
    model = built(layers=2)
    first, last = (
        [name.split(".", 3)[3] for name, _ in model.named_parameters() if name.startswith(f"decoder.layers.{n}.")]
        for n in (0, 1)
    )
    assert first == last and len(first) == 6
    # One checkpoint tensor holds both layers' weights.
    keys = [part.key for part in model.decoder.sharded_state_dict("decoder.").values() if hasattr(part, "local_shape")]
    assert keys.count("decoder.layers.self_attention.linear_qkv.weight") == 2


def test_only_where_shards_stay_even() -> None:
    assert scores_rows_only(ParallelConfig()) and scores_rows_only(
        ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=2)
    )
    assert not scores_rows_only(ParallelConfig(context=2)) and not scores_rows_only(
        ParallelConfig(tensor=2, sequence=True)
    )


def test_last_layer_keeps_less_by_hand() -> None:
    config = config_from_dict(
        {
            "model": {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4},
            "train": {"precision": "bf16"},
        }
    )
    # D = 64, F = 128, 4 heads of 16; 100 tokens, of which 40 are scored: keys, values and the first norm have all rows.
    last = layer_bytes(config, 100, 40)
    whole, scored = 2 * (2 * 64 + 2 * 64) + 4, 2 * (2 * 64 + 2 * 64) + 4 * 4 + 4
    assert last.kept("none") == pytest.approx(100 * whole + 40 * (scored + 2 * 3 * 128))
    assert last.kept("selective") == pytest.approx(
        100 * (whole - 2 * 64 - 4) + 40 * (scored - 2 * 64 - 4 + 2 * 2 * 128)
    )
    assert last.kept("full") == 100 * 2 * 64
