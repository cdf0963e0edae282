"""The factorised network of frame as prompt: published files and folders to a run and back, and a start from Open-Sora
1.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("transformers")
from megatron_videogpt.codec.options import CodecConfig  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.convert.hub_files import needed  # noqa: E402
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel  # noqa: E402
from megatron_videogpt.objective.build import parameter_table  # noqa: E402
from megatron_videogpt.objective.frame_prompt.factorised import released  # noqa: E402
from megatron_videogpt.objective.noise import normal  # noqa: E402
from tests import frame_prompt_folders as folders  # noqa: E402
from tests.frame_prompt_folders import GOLDEN, HEADS, TEXT, hub_folder, recorded_state, same_bytes, state_of  # noqa: E402


@pytest.fixture
def tool() -> Callable[..., int]:
    return folders.tool


def mixed() -> dict[str, Tensor]:
    """Matrices in bfloat16, biases in float16, tables in float32; a zero with a sign, a denormal number."""
    found = {
        key: value.bfloat16() if key.endswith("weight") else value.half() if key.endswith("bias") else value
        for key, value in state_of(**TEXT).items()
    }
    found["final_layer.scale_shift_table"][0, :2] = torch.tensor([-0.0, 1e-42])
    return found


FILES: dict[str, tuple[Callable[[], dict[str, Tensor]], str, tuple[str, ...]]] = {
    "recorded": (recorded_state, "", ("--published", "num_heads=4")),
    "mixed types, with text": (mixed, "state_dict", HEADS),
    "half as wide": (lambda: {k: v.bfloat16() for k, v in state_of().items()}, "module", HEADS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_comes_back(name: str, tool: Callable[..., int], tmp_path: Path) -> None:
    """Straight, and one by way of a folder too; the tensors are the same bytes, where they were."""
    made, entry, told = FILES[name]
    state, work = made(), tmp_path
    torch.save({entry: state, "epoch": 3} if entry else state, work / "given.pt")
    assert tool("from-hf", work / "given.pt", "--output", work / "run", *told) == 0
    assert tool("to-hf", work / "run", "--output", work / "back.pt") == 0
    back = torch.load(work / "back.pt", weights_only=True)
    same_bytes(back[entry] if entry else back, state)
    if entry == "module":
        # Of one type, and so is what lies between.
        assert 'precision = "bf16"' in (work / "run" / "config.toml").read_text()
    if entry != "state_dict":
        return
    for source, command, target in (
        ("run", "to-hf", "folder"),
        ("folder", "from-hf", "again"),
        ("again", "to-hf", "last"),
    ):
        assert tool(command, work / source, "--output", work / target) == 0
    for place in ("folder", "last"):
        same_bytes(load_file(work / place / "model.safetensors"), state)
    settings = [json.loads((work / place / "config.json").read_text()) for place in ("folder", "last")]
    assert settings[0] == settings[1] and settings[0]["input_size"] == TEXT["input_size"]


@pytest.fixture
def launched() -> Iterator[None]:
    """What loading a model starts is stopped."""
    yield
    from megatron_videogpt.platforms import world

    world.stop()


@pytest.mark.parametrize("fields", [{}, TEXT], ids=["plain", "with text"])
@pytest.mark.usefixtures("launched")
def test_the_run_and_the_folder_are_one_network(
    fields: dict[str, Any], tool: Callable[..., int], tmp_path: Path
) -> None:
    from megatron_videogpt.objective.frame_prompt.factorised.memory import Told, WholeMemory
    from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
    from megatron_videogpt.objective.frame_prompt.factorised.rows import Text
    from megatron_videogpt.sample.load import load_model

    given, size = hub_folder(tmp_path / "given", vae=True, **fields), fields.get("input_size", [4, 4])
    before = json.loads((given / "config.json").read_text())
    assert tool("from-hf", given, "--output", tmp_path / "run") == 0
    assert tool("to-hf", tmp_path / "run", "--output", tmp_path / "back") == 0
    after = json.loads((tmp_path / "back" / "config.json").read_text())
    assert before.items() <= after.items()
    same_bytes(*(load_file(place / "model.safetensors") for place in (given, tmp_path / "back")))
    same_bytes(*(load_file(next((place / "vae").glob("*.safetensors"))) for place in (given, tmp_path / "back")))
    prompt, z = normal(1, "prompt", (2, 3, 16, *size)), normal(1, "z", (2, 2, 16, *size))
    words = normal(1, "text", (2, 4, 6)) if fields else None
    alone = FramePromptModel.from_pretrained(tmp_path / "back").eval()
    times = torch.tensor([0, 0, 0, 501, 501]).expand(2, -1)
    wanted = alone.whole(torch.cat([prompt, z], 1), times, 3, 7, alone.tell(words))[:, 3:]
    for source in (tmp_path / "run", tmp_path / "back"):
        model, config, _ = load_model(source, platform="cpu")
        texts = None if words is None else [Text(text) for text in words]
        memory = WholeMemory(Told([model], variant_of_run(config), 2, 1, torch.device("cpu"), texts))
        memory.show(prompt, 7)
        with torch.no_grad():
            found, _ = memory.predict(z, 501)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


VARIANTS = json.loads((GOLDEN / "released_model.json").read_text())["variants"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_key_and_shape_of_the_released_networks(name: str) -> None:
    """What a file of them tells, with nothing said; and as what tensors they are written."""
    variant = VARIANTS[name]
    keys = variant["keys"] | {
        f"blocks.{block}.{key.split('.', 2)[2]}": shape
        for key, shape in variant["keys"].items()
        for block in range(1, variant["config"]["depth"])
        if key.startswith("blocks.1.")
    }
    shapes = {key: tuple(shape) for key, shape in (keys | variant["buffers"]).items()}
    settings = released.guessed(shapes, CodecConfig(name="autoencoder_kl"), {}, name)
    assert settings.items() >= {k: v for k, v in variant["config"].items() if k != "class_dropout_prob"}.items()
    config = released.config_of(settings, replace(Config(), codec=CodecConfig(name="autoencoder_kl")), name)
    assert config.objective.chunk == (16 if "text" in name else 8)
    assert config.objective.prompts == ((1, 17, 33, 49) if "text" in name else (1, 9, 17, 25))
    entries = list(parameter_table(config).entries(config.model))
    found = dict(piece for entry in entries for piece in released.pieces(entry, config.model, 4))
    tables = {key: tuple(value.shape) for key, value in released.buffers(settings).items()}
    assert found | tables == shapes
    count = sum(torch.Size(shape).numel() for key, shape in found.items() if "y_embedding" not in key)
    assert count == variant["num_parameters"]
    assert variant["config"].items() <= (released.settings_of(config, 4) | {"class_dropout_prob": 0.1}).items()


def open_sora() -> dict[str, Tensor]:
    """A network with text, and neither prefix enhancement nor mask channel, of another size of latents and clips."""
    state = state_of(**TEXT | {"input_size": [8, 8], "max_tpe_len": 3})
    return {key: value for key, value in state.items() if key != "bov_token"}


def test_a_start_from_open_sora(tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is new is silent: the network that starts predicts what the one that it came from does."""
    state = open_sora()
    torch.save(state, tmp_path / "given.pth")
    told = (*HEADS, "input_size=4x6", "max_tpe_len=8", "spatial_attn_enhance=prev_frames_2")
    latents, times = normal(2, "latents", (1, 5, 4, 4, 6)), torch.tensor([[0, 0, 0, 300, 300]])
    for name, more in (("with text", ()), ("without", ("caption_channels=0",))):
        run, folder = tmp_path / name, tmp_path / f"{name} folder"
        assert tool("from-hf", tmp_path / "given.pth", "--output", run, "--start", "open-sora", *told, *more) == 0
        said = capsys.readouterr().out
        left = "cross_attn (12), y_embedder (5), " if more else ""
        assert (
            f"afresh: attn_cf (8), attn_temp_pre_merge (2); left out: {left}pos_embed (1), pos_embed_temporal (1)\n"
            in said
        )
        assert tool("to-hf", run, "--output", folder) == 0
        made = load_file(folder / "model.safetensors")
        taken = {key for key in state if key in made and not key.startswith("pos_embed")}
        assert all(torch.equal(made[key], state[key]) for key in taken)
        assert ("y_embedder.y_embedding" in taken) == (not more)
        assert made["pos_embed"].shape == (1, 6, 16) and made["bov_token"].shape == (4, 4, 6)
        text = None if more else normal(2, "text", (1, 5, 6))
        fields = TEXT | ({"caption_channels": 0, "model_max_length": 0} if more else {})
        before = folders.model_of(**fields)
        before.load_state_dict({key: state[key] for key in before.state_dict()})
        after = FramePromptModel.from_pretrained(folder).eval()
        with torch.no_grad():
            pair = [model(latents, times, 3, text=text).noise for model in (before, after)]
        assert float((pair[0] - pair[1]).abs().max() / pair[0].abs().max()) < 1e-6


def test_what_a_folder_needs_is_found_by_its_imports() -> None:
    home = Path(FramePromptModel.__module__.replace(".", "/")).parent.parent
    root = Path(__file__).resolve().parents[2] / home
    wanted = {
        "frame_prompt": "ddpm ddpm_solvers frames_videogpt layers_videogpt configuration_videogpt solvers_videogpt "
        "vae_videogpt videos_videogpt",
        "next_block": "fsq_codes fsq_tokenizer text_ids videos_videogpt",
    }
    for name, modules in wanted.items():
        files = [path for path in (root / name).glob("*.py") if path.name != "__init__.py"]
        assert {path.stem for path in needed(files, root / "common")} == set(modules.split()), name
