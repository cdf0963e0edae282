"""Files and folders of the factorised network of frame as prompt, for the tests of conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.convert.standalone import write_vae
from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import SIZES
from megatron_videogpt.objective.noise import normal
from tests.frame_prompt_hub import model_of

GOLDEN = Path(__file__).resolve().parent / "golden" / "vidgpt"
TEXT: dict[str, Any] = {
    "caption_channels": 6,
    "model_max_length": 5,
    "temp_extra_in_channels": 0,
    "spatial_attn_enhance": None,
    "input_size": [4, 6],
    "class_dropout_prob": 0.25,
}
"""Of a model with text and nothing else, in frames that are no squares."""
HEADS = ("--published", "num_heads=2", "chunk=2")
"""What a file of `frame_prompt_hub.model_of` does not say."""
CODEC = {"in_channels": 16}
"""Of one that has the tiny codec's latents."""


def tool(*arguments: object) -> int:
    """`convert` in this process -> its exit code."""
    return main(["convert", *map(str, arguments)])


def state_of(**fields: Any) -> dict[str, Tensor]:
    """A published state dict with sharp weights, and numbers in what nothing reads."""
    state = model_of(**fields).published_state()
    state["bov_token"] = normal(4, "bov_token", tuple(state["bov_token"].shape))
    return {key: value.detach().clone() for key, value in state.items()}


def recorded_state() -> dict[str, Tensor]:
    """That of the recorded toy network, whose tables and unread tensor are not kept with it."""
    state = load_file(GOLDEN / "tiny_pe" / "model.safetensors")
    settings = {"input_size": [8, 8], "hidden_size": 64, "num_heads": 4, "max_tpe_len": 33}
    return state | {key: value for key, value in state_of(**settings).items() if key not in state}


def hub_folder(path: Path, vae: bool = False, **fields: Any) -> Path:
    """A folder as somebody else made it: settings and weights; vae: with the tiny codec, whose latents it knows."""
    path.mkdir(parents=True)
    fields = (CODEC if vae else {}) | fields
    model = model_of(**fields)
    (path / "config.json").write_text(json.dumps({name: getattr(model.config, name) for name in SIZES}))
    save_file({key: value.contiguous() for key, value in state_of(**fields).items()}, path / "model.safetensors")
    if vae:
        write_vae(path, CodecConfig(name="tiny"))
    return path


def same_bytes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same keys, types and bits, signs of zeros and all."""
    assert ours.keys() == theirs.keys()
    bits = [{key: value.contiguous().view(torch.uint8) for key, value in state.items()} for state in (ours, theirs)]
    wrong = [key for key in ours if ours[key].dtype != theirs[key].dtype or not torch.equal(*(b[key] for b in bits))]
    assert not wrong
