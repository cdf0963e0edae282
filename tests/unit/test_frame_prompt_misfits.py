"""What does not fit the factorised network of frame as prompt, in a file, in a folder, or of another run: one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from megatron_videogpt.condition.options import NONE, ConditionConfig  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.convert import mapped  # noqa: E402
from megatron_videogpt.objective.build import differences, released_of  # noqa: E402
from megatron_videogpt.objective.frame_prompt.factorised.options import FactorisedOptions  # noqa: E402
from megatron_videogpt.objective.frame_prompt.options import FramePromptOptions  # noqa: E402
from tests import frame_prompt_folders as folders  # noqa: E402
from tests.frame_prompt_folders import HEADS, TEXT, hub_folder, state_of  # noqa: E402

FACTORISED = Config(objective=FramePromptOptions(network="factorised"))


@pytest.fixture
def tool() -> Callable[..., int]:
    return folders.tool


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


BAD: dict[str, tuple[Callable[[], dict[str, Tensor]], tuple[str, ...], tuple[str, ...]]] = {
    "another variant": (
        lambda: without(state_of(), "attn_cf"),
        (*HEADS, "spatial_attn_enhance=prev_frames_2"),
        ("8 tensors do not fit", "blocks.0.attn_cf.qkv.weight is missing (and in 1 more layer)"),
    ),
    "half a variant": (
        lambda: without(state_of(), "blocks.1.attn_cf"),
        HEADS,
        ("blocks.1.attn_cf.proj.bias is missing",),
    ),
    "no text table": (lambda: without(state_of(**TEXT), "y_embedding"), HEADS, ("y_embedder.y_proj.fc1.bias belongs",)),
    "latent channels": (
        lambda: state_of() | {"x_embedder.proj.weight": torch.zeros(16, 3, 1, 2, 2)},
        HEADS,
        ("final_layer.linear.weight has shape [32, 16] and not [24, 16]",),
    ),
    "width": (
        lambda: state_of() | {"x_embedder.proj.bias": torch.zeros(20)},
        HEADS,
        ("x_embedder.proj.bias has shape [20] and not [16]",),
    ),
    "numbers": (
        lambda: state_of() | {"t_block.1.bias": torch.zeros(96).long()},
        HEADS,
        ("torch.int64 and not float32",),
    ),
    "more": (lambda: state_of() | {"blocks.0.more": torch.ones(2)}, HEADS, ("blocks.0.more belongs to nothing",)),
    "heads": (state_of, (), ("width 16; say into how many heads it divides: --published num_heads=N",)),
    "size": (lambda: without(state_of(), "bov_token", "pos_embed"), HEADS, ("--published input_size=32x32",)),
    "places": (lambda: without(state_of(), "pos_embed_temporal"), HEADS, ("--published max_tpe_len=33",)),
    "scale": (state_of, (*HEADS, "space_scale=0.5"), ("pos_embed differs by", "computed anew")),
    "chunk": (state_of, ("--published", "num_heads=2"), ("max_tpe_len is 8", "--published chunk=4")),
    "a word": (state_of, (*HEADS, "is_causal=maybe"), ("is_causal=maybe: expected true or false or partial",)),
    "a field": (state_of, (*HEADS, "depth=2"), ("--published depth: unknown, or told by the file",)),
    "rotary": (state_of, (*HEADS, "relative_tpe_mode=rope"), ("expected cyclic or null",)),
    "pipeline": (state_of, (*HEADS, "--pipeline", "2"), ("parallel.pipeline", "timestep network feeds every layer")),
    "hint": (state_of, (*HEADS, "--hint-ids", "1,2,3"), ("--hint-ids: not for a model of frame_prompt",)),
    "start without text": (
        state_of,
        ("--start", "open-sora", *HEADS, "caption_channels=7"),
        ("caption_channels=7", "has none; expected that, or 0"),
    ),
    "another network": (lambda: {"weight": torch.ones(2)}, (), ("expected keys such as", "blocks.0.attn_temp.*")),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line(
    name: str, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, told, parts = BAD[name]
    torch.save(made(), tmp_path / "given.pt")
    assert tool("from-hf", tmp_path / "given.pt", "--output", tmp_path / "run", *told) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 20}, "x_embedder.proj.weight has shape [16, 16, 1, 2, 2] and not [20, 16, 1, 2, 2]"),
        ({"in_channels": 4}, "a model of 4 latent channels, but its codec tiny has 16"),
        ({"depth": True}, "depth is True; expected a whole number"),
        ({"spatial_attn_enhance": "prev_frames_0"}, "expected null, prev_frames_N or first_frame"),
        ({"temp_extra_in_channels": 0}, "blocks.0.attn_temp_pre_merge.bias belongs to nothing"),
        ({"caption_channels": 6}, "expected both, or 0 and 0"),
        ({"input_size": [3, 4]}, "expected multiples of the patch's side, 2"),
        ({"is_causal": 1}, "is_causal is 1; expected true or false or partial"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "given", vae=True)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    found = mapped.released_in(folder)
    assert found is not None
    with pytest.raises(ValueError) as raised:
        mapped.open_source(folder, found, folder / "vae", {}, None, False)
    assert part in str(raised.value) and "\n" not in str(raised.value)


def test_weights_of_another_network_mean_something_else() -> None:
    """What `train.init_from` and a resume are refused for."""
    text = ConditionConfig(kind="text", encoder="words", max_tokens=9)

    def network(condition: ConditionConfig = NONE, **options: Any) -> Config:
        objective = FramePromptOptions(network="factorised", factorised=FactorisedOptions(**options))
        return Config(objective=objective, condition=condition)

    decoder = Config(objective=FramePromptOptions())
    assert released_of(decoder) is None and released_of(FACTORISED) is not None
    for there, here, parts in (
        (decoder, FACTORISED, ["objective.network is decoder there and factorised here"]),
        (FACTORISED, decoder, ["objective.network is factorised there and decoder here"]),
        (network(enhance="none"), FACTORISED, ['objective.factorised.enhance is "none" there and "prev_frames" here']),
        (network(mask_channel=False), FACTORISED, ["objective.factorised.mask_channel is false there and true here"]),
        (network(text), FACTORISED, ['condition.kind is "text" there and "none" here']),
        (network(text), network(replace(text, max_tokens=8)), ["condition.max_tokens is 9 there and 8 here"]),
        (network(places=9, time="full", enhance_frames=2), FACTORISED, []),
        (decoder, decoder, []),
    ):
        found = differences(there, here)
        assert len(found) == len(parts) and all(line.startswith(part) for line, part in zip(found, parts)), found
