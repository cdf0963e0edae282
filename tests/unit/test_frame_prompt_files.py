"""The stand-alone network of frame as prompt: starting values, its files by themselves, what does not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_videogpt.errors import UserError
from megatron_videogpt.hub.frame_prompt import rules_frameprompt as rules
from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Chunks
from megatron_videogpt.hub.frame_prompt.start_frameprompt import start_value
from tools.parity import nbp, vidgpt

pytest.importorskip("transformers")
from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import FramePromptConfig  # noqa: E402
from megatron_videogpt.hub.frame_prompt.memory_frameprompt import memory_of  # noqa: E402
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel  # noqa: E402
from tests.frame_prompt_hub import compared, model_of  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vidgpt"


def test_starting_values() -> None:
    """By the published names; a network with a mask channel and prefix enhancement starts as one without."""
    width = 48
    assert not start_value("blocks.3.attn_cf.proj.weight", (width, width)).any()
    assert not start_value("blocks.3.attn.qkv.bias", (width,)).any()
    merge = start_value("blocks.0.attn_temp_pre_merge.weight", (width, width + 1))
    assert torch.equal(merge, torch.cat([torch.eye(width), torch.zeros(width, 1)], 1))
    patches = start_value("x_embedder.proj.weight", (width, 4, 1, 2, 2))
    bound = (6 / (width + 16)) ** 0.5
    assert 0.95 * bound < float(patches.abs().max()) <= bound
    for key, shape, deviation in (
        ("t_block.1.weight", (6 * width, width), 0.02),
        ("y_embedder.y_proj.fc1.weight", (width, 64), 0.02),
        ("blocks.0.scale_shift_table", (6, 4 * width), (4 * width) ** -0.5),
        ("blocks.0.mlp.fc1.weight", (4 * width, width), (2 / (5 * width)) ** 0.5),
    ):
        value = start_value(key, shape, seed=3)
        assert float(value.std()) == pytest.approx(deviation, rel=0.05), key
        assert torch.equal(value, start_value(key, shape, seed=3))
        assert not torch.equal(value, start_value(key, shape, seed=4))
    model = FramePromptModel(FramePromptConfig(hidden_size=16, depth=1, num_heads=2, input_size=[4, 4]))
    for key, value in model.state_dict().items():
        assert torch.equal(value, start_value(key, tuple(value.shape))), key


def test_the_files_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side in one folder, as exports have them; and a video is continued by them."""
    pytest.importorskip("diffusers")
    home = Path(rules.__file__).parents[1]
    for path in [*(home / "frame_prompt").glob("*_frameprompt.py"), *(home / "common").glob("*.py")]:
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace("from ..common.", "from ."))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    try:
        import pipeline_frameprompt
        from frames_videogpt import TinyVAE
        from tiny_codec import TinyAutoencoder, TinyShape

        torch.manual_seed(0)
        vae = TinyVAE(TinyAutoencoder(TinyShape(4, 8, 1, 8, 1, 8, 1)))
        sizes = {"input_size": [4, 6], "hidden_size": 16, "depth": 1, "num_heads": 2, "chunk": 2, "max_tpe_len": 5}
        config = pipeline_frameprompt.FramePromptConfig(**sizes)
        pipeline = pipeline_frameprompt.FramePromptPipeline(pipeline_frameprompt.FramePromptModel(config), vae)
        video = torch.rand(4, 50, 70, 3)

        def continued(**more: Any) -> Any:
            more = {"chunks": 2, "num_inference_steps": 2, "output_type": "pt"} | more
            (found,) = pipeline(video, generator=torch.Generator().manual_seed(1), **more)
            return found

        pictures = continued()
        assert pictures.shape == (4, 3, 32, 48) and 0 <= float(pictures.min()) and float(pictures.max()) <= 1
        # Silent layers: with these starting values nothing depends on the cache.
        latents = [continued(output_type="latent", cache=cached, prompt_noise=0) for cached in (True, False)]
        assert float((latents[0] - latents[1]).abs().max()) < 1e-5
        for more, words in (
            ({"window": 4}, "room for 3 frames"),
            ({"given": 4}, "given=4"),
            ({"guidance_scale": 2.0}, "guidance"),
            ({"prompt_embeds": torch.zeros(1, 3, 6)}, "trained without"),
            ({"solver": "euler"}, "choose ddpm or ddim"),
            ({"eta": 0.5}, "is of ddim"),
            ({"output_type": "gif"}, "output_type"),
            ({"num_inference_steps": 1001}, "1 to 1000"),
            ({"prompt_noise": 1000}, "prompt noise"),
        ):
            with pytest.raises(ValueError, match=words):
                continued(**more)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"relative_tpe_mode": "learned"}, "relative_tpe_mode"),
        ({"is_causal": 1}, "is_causal"),
        ({"pred_sigma": False}, "pred_sigma"),
        ({"input_size": [5, 4]}, "multiples of"),
        ({"hidden_size": 18}, "multiple of 4"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"caption_channels": 6}, "model_max_length"),
        ({"spatial_attn_enhance": "prev_frames_0"}, "prev_frames_N"),
    ],
)
def test_sizes_that_no_model_has(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        model_of(**fields)
    assert "\n" not in str(caught.value)


def test_what_a_model_does_not_take() -> None:
    model, frames, t = model_of(), torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"this model takes \[B, T, 4, 4, 4\]"):
        model(torch.zeros(1, 3, 4, 6, 4), t, 1)
    with pytest.raises(ValueError, match="trained without"):
        model(frames, t, 1, text=torch.zeros(1, 5, 6))
    with pytest.raises(ValueError, match="needs 1 to 3 prompt frames|prefix enhancement needs"):
        model(frames, t, 0)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        model(frames, t, 4)
    with_text = model_of(caption_channels=6, model_max_length=5)
    with pytest.raises(ValueError, match="needs the text encoder's features"):
        with_text(frames, t, 1)
    with pytest.raises(ValueError, match="N up to 5"):
        with_text(frames, t, 1, text=torch.zeros(1, 6, 6))
    with pytest.raises(ValueError, match="without causal attention"):
        memory_of(model_of(is_causal=False), 6)
    with pytest.raises(ValueError, match="max_tpe_len=8"):
        model_of(relative_tpe_mode=None).write(torch.zeros(1, 9, 4, 4, 4), model.new_cache(9))
    with pytest.raises(ValueError, match="needs 1 to 6"):
        Chunks(2, 1, 6).check(7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spatial_attn_enhance": None}, "no place for blocks.0.attn_cf"),
        ({"caption_channels": 24, "model_max_length": 8}, "it lacks blocks.0.cross_attn"),
        ({"hidden_size": 32}, "x_embedder|shape"),
    ],
)
def test_a_checkpoint_of_another_variant(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "tiny_pe", tmp_path / "tiny_pe")
    path = tmp_path / "tiny_pe" / "config.json"
    path.chmod(0o644)
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | fields), encoding="utf-8")
    state = load_file(GOLDEN / "tiny_pe" / "model.safetensors")
    model = FramePromptModel(FramePromptConfig(**settings | fields))
    with pytest.raises(ValueError, match=words) as caught:
        model.load_published(state)
    assert "\n" not in str(caught.value)


def test_a_recorded_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "forward.json", tmp_path)
    shutil.copy(GOLDEN / "forward.safetensors", tmp_path)
    with pytest.raises(UserError, match="no checkpoint that can be read") as caught:
        compared(tmp_path)
    assert "\n" not in str(caught.value)


def test_kinds_of_recorded_folders_do_not_mix() -> None:
    """forward.json alone would make it one of next block prediction."""
    assert nbp.is_kind(GOLDEN) and vidgpt.is_kind(GOLDEN)
