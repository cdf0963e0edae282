"""Next block prediction: order of blocks, packed rows, closed forms, the loss in chunks, its options, the parameters of
the published sizes.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_videogpt.codec.fsq import codes_of
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.errors import UserError
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.base import ONLY
from megatron_videogpt.objective.next_block.loss import CHUNK_BYTES, Part, Scored, chunk_rows, cross_entropy
from megatron_videogpt.objective.next_block.objective import NextBlock
from megatron_videogpt.objective.next_block.parameters import published, table_of
from megatron_videogpt.objective.next_block.released import model_of, vocabulary_in
from megatron_videogpt.objective.next_block.sequence import block_order
from megatron_videogpt.objective.next_block.vocabulary import Vocabulary
from megatron_videogpt.objective.next_block.work import BlockWork
from megatron_videogpt.sequence.intervals import dense_mask

LEVELS = (5, 4, 3)


def sample_of(grid: tuple[int, int, int], key: int = 1, **facts: Any) -> Sample:
    codes = torch.randint(60, grid, generator=torch.Generator().manual_seed(key))
    return Sample(key, "video", codes_of(codes, LEVELS), None, (grid[0],), **facts)


def test_blocks_of_a_shape_come_one_after_another() -> None:
    # Two frames of 2 x 4 tokens in blocks of 2 x 1 x 2, written out by hand.
    expected = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert block_order((2, 2, 4), (2, 1, 2)).tolist() == expected
    assert torch.equal(block_order((3, 4, 4), (1, 1, 4)), torch.arange(48))


@pytest.mark.parametrize("layout", ["unconditional", "hybrid", "given_first_block"])
def test_a_packed_row_of_two_lengths_is_its_videos(layout: str) -> None:
    """Each as it is alone, but for where it stands; closed forms count it."""
    prefix = 0 if layout == "unconditional" else 1
    objective = NextBlock(Vocabulary(layout, 4, 60, 3 * prefix), LEVELS, (2, 1, 2), prefix, 4)
    condition = torch.tensor([2]) if prefix else None
    samples = [sample_of((2, 2, 4), 1, condition=condition), sample_of((4, 2, 4), 2, condition=condition, dropped=True)]
    row, alone = objective.prepare(samples, 8), [objective.prepare([sample], 1) for sample in samples]
    assert row.length % 8 == 0 and row.count == sum(one.count for one in alone)
    start = 0
    for sample, one in zip(samples, alone):
        here = slice(start, start + one.length)
        assert torch.equal(dense_mask(row.intervals)[here, here], dense_mask(one.intervals))
        assert dense_mask(row.intervals)[here].sum() == dense_mask(one.intervals).sum()
        assert torch.equal(row.positions[here], one.positions)
        assert torch.equal(row.streams["token"]["id"][here], one.streams["token"]["id"])
        work = BlockWork(objective.vocabulary, prefix).of_tokens(math.prod(sample.mean[:, 0].shape))
        assert work.tokens == one.length == objective.length(sample) and work.scored == one.count
        assert work.pairs == int(dense_mask(one.intervals).sum())
        assert work.scored_pairs == int(dense_mask(one.intervals)[one.scored_rows].sum())
        start += one.length
    assert torch.equal(row.target, torch.cat([one.target for one in alone]))
    assert len(row.streams["dropped"]) == prefix
    # The frame of what is predicted follows its place in the order of blocks: two frames in every block.
    assert row.streams["video"]["frame"][:4].tolist() == [0, 0, 1, 1]


def test_what_holds_a_place_counts_nothing() -> None:
    objective = NextBlock(Vocabulary("hybrid", 4, 60, 3), LEVELS, (), 1, 2)
    nothing = Sample(0, "nothing", torch.zeros(1, 3, 1, 1), None, (1,), scored=False)
    row = objective.prepare([nothing], 1)
    assert row.length == objective.length(nothing) == 1 and row.count == 0 and not row.weight.any()


def test_codes_of_other_levels_are_refused() -> None:
    objective = NextBlock(Vocabulary("unconditional", 4, 60), LEVELS)
    with pytest.raises(UserError, match="outside the levels"):
        objective.prepare([replace(sample_of((2, 2, 4)), mean=torch.full((2, 3, 2, 4), 0.3))], 1)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[int, ...], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.found[tuple(value.shape)] = value.untyped_storage().nbytes()
        return result


def tensors(rows: int, words: int, width: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(3)
    hidden, table = torch.randn(rows, width, generator=draws), torch.randn(words, width, generator=draws)
    weight = torch.rand(rows, generator=draws).round(decimals=1)
    return [hidden, table, torch.randint(words, (rows,), generator=draws), weight]


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_loss_in_chunks_is_that_of_all_logits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, target, weight = tensors(rows, 50, 8)
    monkeypatch.setattr("megatron_videogpt.objective.next_block.loss.CHUNK_BYTES", 4 * 48 * 9)
    assert chunk_rows(rows, 48) <= 9
    target = target.clamp(max=47)
    leaves = [value.requires_grad_() for value in (hidden, table)]
    logits = F.linear(hidden, table[:48])
    expected = F.cross_entropy(logits, target, reduction="none")
    wanted = torch.autograd.grad(3 * (expected * weight).sum(), leaves)
    # Two rows of the table are of no word.
    found = cross_entropy(hidden, table, target, weight, Part(0, 48))
    assert torch.allclose(found.nll, expected.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.above, (logits > logits.gather(1, target[:, None])).sum(1).float())
    for ours, theirs in zip(torch.autograd.grad(3 * found.total, leaves), wanted):
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    half = [value.detach().bfloat16().requires_grad_() for value in leaves]
    total = cross_entropy(half[0], half[1], target, weight, Part(0, 48)).total
    for ours, theirs in zip(torch.autograd.grad(3 * total, half), wanted):
        assert ours.dtype == torch.bfloat16
        assert float((ours - theirs).abs().max()) <= 0.05 * float(theirs.abs().max())


def test_a_shard_without_scored_rows_has_a_gradient_all_the_same() -> None:
    """Context parallel ranks reduce the same parameters, whatever rows they have."""
    hidden, table, target, weight = tensors(0, 50, 8)
    found = cross_entropy(hidden.requires_grad_(), table.requires_grad_(), target, weight, Part(0, 50))
    found.total.backward()
    assert float(found.total.detach()) == 0 and table.grad is not None and not table.grad.any()
    assert hidden.grad is not None and hidden.grad.shape == (0, 8)


@pytest.mark.usefixtures("processes")
def test_no_logits_of_a_whole_row_exist() -> None:
    """A step at K600's 1264 rows and 64,000 words through a narrow model, forward and backward."""
    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import activate

    small = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 16, "patch_size": 1}
    config = config_from_dict(options(model=small, train={"precision": "fp32"}))
    objective, network = build_objective(config), build_network(config, 6, activate("cpu"), "ranged")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    codes = codes_of(torch.randint(64_000, (5, 16, 16)), (8, 8, 8, 5, 5, 5))
    row = objective.prepare([Sample(1, "video", codes, None, (5,))], 1)
    with Largest() as watched:
        score = objective.score(network(row), row, ONLY)
        (score.total / score.count).backward()
    assert score.count == 1264 and float(score.total.detach()) / 1264 == pytest.approx(math.log(64_000), rel=0.02)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert max(size for shape, size in watched.found.items() if 64_000 in shape) == max(watched.found.values())
    assert 16e6 < max(watched.found.values()) <= CHUNK_BYTES < 64e6


@pytest.mark.usefixtures("processes")
def test_a_dropped_condition_keeps_its_place_and_loses_its_meaning() -> None:
    from megatron_videogpt.objective.next_block.ends import IdEmbedding

    vocabulary = Vocabulary("hybrid", 4, 60, 3)
    objective = NextBlock(vocabulary, LEVELS, (), 1, 2)
    model = model_of({"num_layers": 1, "hidden_size": 8, "ffn_size": 8, "num_heads": 2, "max_positions": 64})
    embedding = IdEmbedding(model, 3, torch.float32, torch.device("cpu"), vocabulary, 1)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    told = [sample_of((2, 2, 4), 1, condition=torch.tensor([number])) for number in (1, 2)]
    first, second, dropped = (
        embedding(objective.prepare([sample], 1))[:, 0] for sample in (*told, replace(told[1], dropped=True))
    )
    assert torch.equal(first[0], embedding.table[5]) and torch.equal(second[0], embedding.table[6])
    assert embedding.unconditional is not None and torch.equal(dropped[:1], embedding.unconditional)
    assert torch.equal(first[1:], second[1:]) and torch.equal(second[1:], dropped[1:])


def test_what_is_counted_beside_the_loss() -> None:
    objective = NextBlock(Vocabulary("unconditional", 4, 60), LEVELS, (), 0, 3)
    row = objective.prepare([sample_of((2, 2, 2)), sample_of((3, 2, 2), 2), sample_of((3, 2, 2), 3, scored=False)], 1)
    nll, above = torch.arange(20.0), torch.arange(20.0) % 8
    score = objective.score(Scored((nll * row.weight).sum(), nll, above), row)
    assert [metric.name for metric in objective.metrics] == [
        *("accuracy_top1", "accuracy_top5"),
        *("loss_frame0", "loss_frame1", "loss_frame2"),
    ]
    # Blocks of a frame: of the two videos that count, 4 tokens of the second frame each and 4 of the third.
    assert score.count == 12 and score.counts.tolist() == [12, 12, 0, 8, 4]
    assert score.sums.tolist() == [2, 9, 0, sum(range(8)), sum(range(8, 12))]


SIZES = ("k600_700M", "ucf_700M", "k600_1.2B", "ucf_1.2B", "k600_3B", "ucf_3B")


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_the_published_sizes(reference: Path, name: str) -> None:
    """Keys, shapes and how many there are, from the table alone."""
    recorded = json.loads((reference / "nbp" / "released_model.json").read_text())
    sizes, hybrid = recorded["sizes"][name], name.startswith("ucf")
    model = model_of(sizes)
    vocabulary = vocabulary_in({**sizes, "codes": 64_000, "text_ids": 32_000 * hybrid}, sizes["block"])
    table = table_of(vocabulary, sizes["prefix"])
    found: dict[str, list[int]] = {}
    for entry in table.entries(model):
        shape, keys = list(entry.shape(model, 6)), published(entry.hf)
        found.update({key: [shape[0] // len(keys), *shape[1:]] for key in keys})
    # The keys of two sizes are recorded, and the width of the third.
    keys, wider = recorded["transformer_keys"]["ucf_700M"], {1536: model.hidden_size, 6144: model.ffn_hidden_size}
    assert keys.keys() == recorded["transformer_keys"]["ucf_3B"].keys()
    keys = recorded["transformer_keys"].get(f"ucf_{name.split('_')[1]}") or {
        key: [wider.get(size, size) for size in shape] for key, shape in keys.items()
    }
    expected = {
        key.replace("{l}", str(layer)): shape
        for key, shape in keys.items()
        for layer in (range(model.num_layers) if "{l}" in key else [0])
    }
    if not hybrid:
        # Its embeddings of no condition, of which there are none, are in the published files only.
        del expected["transformer.uncond_embedding"]
        for key in ("transformer.tok_emb.weight", "transformer.head.weight"):
            expected[key] = [64_000, model.hidden_size]
    assert found == expected
    counts = component_parameters(table, model, 6)
    assert counts["decoder.layers"] + counts["decoder.final_layernorm"] == pytest.approx(
        sizes["layer_parameters"], abs=2 * model.hidden_size
    )
    buffer = counts.get("embedding.unconditional", 0)
    assert sum(counts.values()) - buffer == sizes["num_parameters"]


def options(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "objective": {"name": "next_block_prediction", "block": 16},
        "codec": {"name": "fsq", "path": "codec"},
        "model": {"patch_size": 1},
        "data": {"source": "videos", "path": ".", "size_multiple": 128, "longest_side": 128, "frames": 5},
    }
    values["data"]["clips"] = [1, 1]
    for name, value in changes.items():
        section, _, option = name.partition("__")
        values.setdefault(section, {}).update({option: value} if option else value)
    return values


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"objective__block_shape": [1, 4, 4]}, ""),
        ({"objective__block_shape": [2, 1, 8]}, "objective.block_shape = [2, 1, 8]: must divide every video of 5"),
        ({"objective__block_shape": [1, 1, 8]}, "three numbers whose product is objective.block = 16"),
        ({"objective__block": 48}, "objective.block = 48: must divide every video of 5 latent frames"),
        ({"objective__block": 1280}, "must leave a second block of the 1280 tokens"),
        ({"objective__block": 1280, "objective__layout": "hybrid"}, ""),
        ({"objective__layout": "given_first_block"}, "must be unconditional or hybrid without a condition"),
        ({"condition__kind": "class", "condition__classes": ["a"]}, "must be hybrid or given_first_block"),
        ({"condition__kind": "text", "objective__layout": "hybrid"}, "must be ids with objective.name = next_block"),
        ({"model__patch_size": 2}, "model.patch_size = 2: must be 1"),
        ({"codec__name": "tiny"}, 'codec.name = "tiny": must be fsq'),
        (
            {
                "parallel__tensor": 3,
                "model__num_attention_heads": 6,
                "model__hidden_size": 96,
                "model__ffn_hidden_size": 96,
            },
            "divide the vocabulary",
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_line_each(changes: dict[str, Any], told: str) -> None:
    found = find_problems(config_from_dict(options(**changes)), None)
    about = [line for line in found if line.startswith(("objective.", "codec.name", "model.patch", "condition."))]
    about += [line for line in found if line.startswith("parallel.tensor") and "vocabulary" in line]
    assert len(about) == bool(told), found
    assert told in "".join(about)


def test_the_prefix_is_the_objectives_own() -> None:
    from megatron_videogpt.objective.build import parameter_table

    config = config_from_dict(options(objective__layout="hybrid", condition__kind="class", condition__classes=["a"]))
    assert config.condition == replace(ConditionConfig(), kind="class", classes=("a",))
    names = [rule.name for rule in parameter_table(config).rules]
    assert "embedding.unconditional" in names and not any(name.startswith("prefix") for name in names)
    assert parameter_table(config) is parameter_table(config)
