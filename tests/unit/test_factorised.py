"""The factorised network of Ca2-VDM: recorded masks and passes, packed rows against plain attention, closed forms, its
parameters, refusals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.config.schema import Config, ParallelConfig, TrainConfig
from megatron_videogpt.errors import UserError
from megatron_videogpt.model.flops import component_parameters, sharded_parameters
from megatron_videogpt.model.parameters import Parameter
from megatron_videogpt.model.tensors import from_hf, initial, shard, to_hf, unshard
from megatron_videogpt.objective.frame_prompt.factorised.masks import Extent, masks_of
from megatron_videogpt.objective.frame_prompt.factorised.parameters import table_of
from megatron_videogpt.objective.frame_prompt.factorised.published import model_of, settings_of, variant_of
from megatron_videogpt.objective.frame_prompt.factorised.rows import Text, assemble
from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant, temporal_places
from megatron_videogpt.objective.frame_prompt.factorised.work import pairs_of
from megatron_videogpt.platforms import Platform
from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask
from megatron_videogpt.sequence.row import Mask
from tests import factorised_prompt as small
from tests.factorised_dense import error

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vidgpt"
EXTENTS = [Extent(5, 3, 4), Extent(6, 4, 4), Extent(5, 1, 6), Extent(4, 2, 3)]


def test_recorded_masks_positions_and_passes(platform: Platform, processes: None) -> None:
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from megatron_videogpt.objective.recorded import Report

    def build(config: Config, ends: Any, channels: int) -> Any:
        return VideoGPT(config, channels, platform, "ranged", ends)

    report = Report(parity.LIMITS)
    skipped = parity.check_folder(GOLDEN, ParallelConfig(), build, report)
    assert not report.failures() and not {*skipped} - {"rope"}
    # The folder is a compact one: no computed tables, whole gradients, nor what layers make.
    assert report.compared.keys() >= parity.LIMITS.keys() - {"position tables", "intermediates", "gradients"}


def seen(mask: Mask) -> torch.Tensor:
    """How often each stored token is a key of each, int64 ``[L, L]``."""
    length = len(mask.intervals)
    order = torch.arange(length) if mask.order is None else mask.order
    sees = dense_mask(mask.intervals, len(order)).long()
    return torch.zeros(length, length, dtype=torch.int64).index_add_(1, order, sees)


def expected(variant: Variant, kind: int) -> torch.Tensor:
    """The same from the rules, token by token."""
    tokens = [
        (number, frame, patch)
        for number, extent in enumerate(EXTENTS)
        for frame in range(extent.frames)
        for patch in range(extent.patches)
    ]

    def count(query: tuple[int, int, int], key: tuple[int, int, int]) -> int:
        (video, frame, patch), (other, there, place) = query, key
        if video != other:
            return 0
        prompt = EXTENTS[video].prompt
        if kind == 0:
            return int(frame == there)
        if kind == 1:
            all_seen = variant.time == "full" or variant.time == "partial" and frame >= prompt
            return int(patch == place and (all_seen or there <= frame))
        if variant.enhance == "first_frame":
            return int(there == 0)
        if frame < prompt:
            return int(there == frame)
        listed = [max(prompt - 1 - k, 0) for k in range(variant.enhance_frames)]
        # Once and several times are the same where there is no other frame.
        return listed.count(there) if len(set(listed)) > 1 else int(there in listed)

    return torch.tensor([[count(query, key) for key in tokens] for query in tokens])


@pytest.mark.parametrize("name", small.VARIANTS)
def test_masks_of_a_packed_row_are_those_of_the_rules(name: str) -> None:
    variant = small.VARIANTS[name]
    real = sum(extent.tokens for extent in EXTENTS)
    masks = masks_of(EXTENTS, real + 5, variant)
    assert len(masks) == 2 + (variant.enhance != "none")
    for kind, mask in enumerate(masks):
        found = seen(mask)
        assert torch.equal(found[:real, :real], expected(variant, kind))
        # Padding sees its first token.
        assert not found[:real, real:].any() and (found[real:] == torch.eye(real + 5)[real]).all()
    # Leading videos of equal frames, whose sizes differ in number only, are computed in one call.
    assert masks[0].groups == (11, 4) and masks[1].groups == (4, 5)
    total = sum(
        pairs_of(variant, *extent, words=2) - extent.tokens * 2 * (variant.text_width > 0) for extent in EXTENTS
    )
    assert total == sum(attended_pairs(mask.intervals) for mask in masks) - 5 * len(masks)


def test_pairs_in_closed_form_for_arrays() -> None:
    variant = small.VARIANTS["with text"]
    numbers = np.array([extent for extent in EXTENTS]).T
    words = np.array([1, 2, 3, 4])
    one_by_one = [pairs_of(variant, *extent, words=count) for extent, count in zip(EXTENTS, words.tolist())]
    assert pairs_of(variant, *numbers, words=words).tolist() == one_by_one


@pytest.fixture(scope="module")
def build(platform: Platform, processes: None) -> Iterator[Any]:
    """`build(variant, backend)`: the network with the twin's weights."""
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of

    def made(variant: Variant, backend: str) -> Any:
        config = Config(model=small.MODEL, train=TrainConfig(precision="fp32"))
        network = VideoGPT(config, small.CHANNELS, platform, backend, ends_of(variant))
        weights = small.weights_of(variant)
        load_released(network, small.MODEL, lambda entry: weights[entry.hf])
        return network

    yield made


@pytest.mark.parametrize("backend", ["ranged", "reference"])
@pytest.mark.parametrize("name", small.VARIANTS)
def test_packed_rows_are_plain_factorised_attention(build: Any, name: str, backend: str) -> None:
    """Outputs and the gradients of all parameters."""
    from megatron_videogpt.model.init import gather_released

    variant, weights = small.VARIANTS[name], small.weights_of(small.VARIANTS[name])
    network, rows = build(variant, backend), small.rows_of(variant)
    outputs, gradients = small.truth(rows, variant, weights)
    total, count = torch.zeros(()), 0
    for videos, wanted in zip(rows, outputs):
        row = assemble(videos, 8, variant, 2)
        output = network(row)
        noise, variance = output.unflatten(1, (4, -1)).chunk(2, dim=2)
        assert error(torch.cat([noise, variance], 2).flatten(1), wanted) <= 1e-5
        total, count = total + small.loss_of(output, row.target), count + row.count
    (total / count).backward()
    found = gather_released(network, small.MODEL, lambda parameter: parameter.grad)
    for key, wanted in gradients.items():
        if key == "y_embedder.y_embedding":
            assert not found[key].any() and not wanted.any()
        else:
            assert error(found[key], wanted) <= 1e-5, key


def released() -> dict[str, Any]:
    """Variant -> its settings and the shapes of its tensors."""
    found: dict[str, Any] = json.loads((GOLDEN / "released_model.json").read_text(encoding="utf-8"))["variants"]
    return found


@pytest.mark.parametrize("name", released())
def test_released_keys_shapes_and_sizes(name: str) -> None:
    case = released()[name]
    settings = case["config"]
    model, variant = model_of(settings), variant_of(settings, name)
    entries = list(table_of(variant).entries(replace(model, num_layers=2)))
    frozen = {entry.hf: entry.shape(model, 4) for entry in entries if entry.rule.rate == 0.0}
    shapes = {entry.hf: list(entry.shape(model, 4)) for entry in entries if entry.hf not in frozen}
    assert shapes == {key: shape for key, shape in case["keys"].items()}
    assert all(case["buffers"][key] == list(shape) for key, shape in frozen.items())
    counted = sum(component_parameters(table_of(variant), model, 4).values())
    assert counted == case["num_parameters"]
    assert settings_of(model, variant, 4, tuple(settings["input_size"])) == settings
    # What only the first layer has stands beside the layers.
    layer, first, last = sharded_parameters(table_of(variant), model, 4, 1)
    assert model.num_layers * layer + first + last == counted + sum(map(math.prod, frozen.values()))


def entries_of(variant: Variant) -> dict[str, Parameter]:
    """By their published keys."""
    return {entry.hf: entry for entry in table_of(variant).entries(small.MODEL)}


def test_start_values() -> None:
    variant = small.VARIANTS["with text"]
    start = {key: initial(entry, small.MODEL, 4, 3) for key, entry in entries_of(variant).items()}
    silent = ("attn_temp.proj", "attn_cf.proj", "cross_attn.proj", "final_layer.linear")
    for key, value in start.items():
        if key.endswith(".bias") or any(name in key for name in silent):
            assert not value.any(), key
        else:
            assert value.any(), key
    merge = start["blocks.0.attn_temp_pre_merge.weight"]
    assert torch.equal(merge, torch.eye(small.WIDTH, small.WIDTH + 1)) and not merge[:, -1].any()
    joint = start["blocks.1.attn.qkv.weight"]
    assert joint.abs().max() <= math.sqrt(6 / (4 * small.WIDTH)) < 1.02 * joint.abs().max()
    patch = start["x_embedder.proj.weight"]
    assert patch.abs().max() <= math.sqrt(6 / (small.WIDTH + 16)) < 1.05 * patch.abs().max()
    for key in ("t_embedder.mlp.0.weight", "t_block.1.weight", "y_embedder.y_proj.fc1.weight"):
        assert float(start[key].std()) == pytest.approx(0.02, rel=0.2), key
    tables = torch.cat([value for key, value in start.items() if key.endswith("scale_shift_table")])
    assert float(tables.std()) == pytest.approx(small.WIDTH**-0.5, rel=0.15)


def test_layouts_of_parameters_go_both_ways() -> None:
    variant = small.VARIANTS["with text"]
    weights = small.weights_of(variant)
    for key, entry in entries_of(variant).items():
        ours = from_hf(entry, weights[key], small.MODEL)
        parts = [shard(entry, ours, rank, 2) for rank in range(2)]
        assert torch.equal(to_hf(entry, unshard(entry, parts), small.MODEL), weights[key]), key


def test_refusals_in_one_line() -> None:
    text, none = small.VARIANTS["with text"], small.VARIANTS["without"]
    video = small.video_of((5, 3, 4, 4), 1, text)
    given = Text(torch.zeros(4, 5))
    wrong = [
        (none, replace(video, text=given), "no attention to a text"),
        (text, replace(video, text=None), "a video without a text"),
        (text, replace(video, text=Text(torch.zeros(4, 6))), "width 6"),
        (text, replace(video, text=Text(torch.zeros(5, 5))), "5 tokens"),
        (text, replace(video, text=Text(torch.zeros(4, 5), torch.zeros(4))), "no token is seen"),
    ]
    for variant, one, what in wrong:
        with pytest.raises(UserError, match=what) as raised:
            assemble([one], 1, variant, 2)
        assert "\n" not in str(raised.value)
    settings = json.loads((GOLDEN / "tiny_pe" / "config.json").read_text(encoding="utf-8"))
    for changed in ({"relative_tpe_mode": "rope"}, {"is_causal": "no"}, {"spatial_attn_enhance": "prev_frames_0"}):
        with pytest.raises(UserError, match="config.json"):
            variant_of(settings | changed, "config.json")
    with pytest.raises(UserError, match="12 fixed positions"):
        temporal_places(small.VARIANTS["partial"], 13)
