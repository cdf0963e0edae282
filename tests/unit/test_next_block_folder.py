"""Published transformers of next block prediction to a run and back, the stand-alone model against recorded logits, and
one line for what does not fit.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.convert import mapped
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer
from megatron_videogpt.objective.next_block import released
from megatron_videogpt.objective.recorded import Cases
from tests.conversion import same
from tests.next_block_folders import GOLDEN, block_folder
from tests.tokenizer import random_tokenizer, saved

TOLD = ("--published", "block=4", "num_heads=4", "--levels", "8", "5", "5", "--groups", "2")


def tool(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def tokenizer(folder: Path, levels: tuple[int, ...] = (8, 5, 5)) -> Path:
    return saved(folder, FSQShape(4, 2, 1, levels))


def published(path: Path, **more: Any) -> dict[str, Tensor]:
    """A training checkpoint like the published ones, with the frozen tokenizer and an empty buffer in it."""
    state = load_file(GOLDEN / "tiny_k600" / "model.safetensors")
    state["transformer.ln_f.bias"][:2] = torch.tensor([-0.0, 1e-42])
    state["transformer.uncond_embedding"] = torch.zeros(0, 48)
    frozen = random_tokenizer(seed=5).state_dict()
    state |= {f"first_stage_model.{key}": value.clone() for key, value in frozen.items()}
    torch.save({"state_dict": state, "epoch": 7, "optimizer_states": [{"step": torch.tensor(3.0)}], **more}, path)
    return state


@pytest.mark.parametrize("name", ["tiny_k600", "tiny_given", "tiny_ucf"])
def test_a_recorded_folder_comes_back(name: str, tmp_path: Path) -> None:
    given = block_folder(tmp_path / "given", name)
    # What fills a run is what gives the recorded logits.
    opened = mapped.open_source(given, released, given / "tokenizer", {}, None, False)
    _, _, tensor_of = released.open_folder(given)
    assert all(torch.equal(opened.tensor(entry), tensor_of(entry)) for entry in opened.entries)
    for source, run, back in (("given", "run", "back"), ("back", "again", "last")):
        assert tool("from-hf", tmp_path / source, "--output", tmp_path / run) == 0
        assert tool("to-hf", tmp_path / run, "--output", tmp_path / back) == 0
    original = load_file(given / "model.safetensors")
    for folder in ("back", "last"):
        same(load_file(tmp_path / folder / "model.safetensors"), original)
        same(*(load_file(tmp_path / place / "tokenizer" / "model.safetensors") for place in (folder, "given")))
    settings, back = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("given", "back"))
    assert settings.items() <= back.items()
    assert back == json.loads((tmp_path / "last" / "config.json").read_text())


def test_a_published_file_comes_back(tmp_path: Path) -> None:
    state = published(tmp_path / "given.ckpt")
    assert tool("from-hf", tmp_path / "given.ckpt", "--output", tmp_path / "run", *TOLD) == 0
    assert tool("to-hf", tmp_path / "run", "--output", tmp_path / "back.ckpt") == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(back[key].numpy().tobytes() == value.numpy().tobytes() for key, value in state.items())
    # And what lies in the run is a tokenizer that a configuration can name.
    FSQTokenizer.from_pretrained(tmp_path / "run" / "released" / "files" / "tokenizer")


def other_vocabulary(work: Path) -> list[object]:
    published(work / "a.ckpt")
    return [work / "a.ckpt", *TOLD[:-6], "--levels", "5", "5", "5", "--groups", "2"]


def other_tokenizer(work: Path) -> list[object]:
    return [GOLDEN / "tiny_k600", "--vae", tokenizer(work / "other", (5, 5, 5))]


def no_division(work: Path) -> list[object]:
    shutil.copytree(GOLDEN / "tiny_k600", work / "folder")
    settings = json.loads((work / "folder" / "config.json").read_text())
    (work / "folder" / "config.json").write_text(json.dumps(settings | {"block": 3}))
    return [work / "folder", "--vae", tokenizer(work / "tokenizer")]


def more_than_tensors(work: Path) -> list[object]:
    published(work / "a.ckpt", hyper_parameters=Namespace(block=4))
    return [work / "a.ckpt", *TOLD]


def unknown_key(work: Path) -> list[object]:
    state = published(work / "a.ckpt")
    torch.save({"state_dict": state | {"transformer.extra": torch.ones(2)}}, work / "a.ckpt")
    return [work / "a.ckpt", *TOLD]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (other_vocabulary, ("a table of 200 ids does not fit", "a tokenizer of 125 codes")),
        (other_tokenizer, ("a vocabulary of 200 codes, and its tokenizer has 125",)),
        (no_division, ("objective.block", "divide every video")),
        (more_than_tensors, ("more than tensors", "argparse.Namespace")),
        (unknown_key, ("transformer.extra belongs to nothing",)),
    ],
)
def test_what_does_not_fit_is_one_line(
    given: Any,
    parts: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool("from-hf", *given(tmp_path), "--output", tmp_path / "run") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and all(part in told[0] for part in parts), told
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


@pytest.fixture(scope="module")
def alone() -> Any:
    """The stand-alone model's modules."""
    pytest.importorskip("transformers")
    from megatron_videogpt.hub.next_block import modeling_nextblock

    return modeling_nextblock


def test_the_stand_alone_model_gives_the_recorded_logits(alone: Any) -> None:
    cases = Cases(GOLDEN, "forward")
    assert len({case["checkpoint"] for case in cases}) == 3
    for case in cases:
        settings = json.loads((GOLDEN / case["checkpoint"] / "config.json").read_text())
        model = alone.NextBlockModel(alone.NextBlockConfig(**settings | {"block": case["block"]})).eval()
        state = load_file(GOLDEN / case["checkpoint"] / "model.safetensors")
        assert state.keys() == model.state_dict().keys()
        model.load_state_dict(state)
        ids, wanted = cases.get(case, "input_ids"), cases.get(case, "logits")
        cache, first, block = alone.NextBlockCache(ids.shape[1]), case["prefix"] + case["block"], case["block"]
        with torch.no_grad():
            whole = model(ids).logits
            places = [0, *range(first, ids.shape[1] + 1, block)]
            pieces = [model(ids[:, start:end], cache).logits for start, end in zip(places, places[1:])]
        for found in (whole, torch.cat(pieces, 1)):
            assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5, case["name"]


def test_the_stand_alone_model_samples_the_recorded_ids(alone: Any) -> None:
    """With its cache, by the stored noise and the largest logits, guided and not."""
    from megatron_videogpt.hub.next_block.pipeline_nextblock import CachedModel
    from megatron_videogpt.hub.next_block.sampling_nextblock import UNKNOWN, Drawing, Video, draw_tokens

    cases = Cases(GOLDEN, "sampler")
    assert len({case["checkpoint"] for case in cases}) > 1 and any(case["cfg_ratio"] for case in cases)
    for case in cases:
        held = {name: cases.get(case, name) for name in case["tensors"]}
        settings = json.loads((GOLDEN / case["checkpoint"] / "config.json").read_text()) | {"block": case["block"]}
        model = alone.NextBlockModel(alone.NextBlockConfig(**settings)).eval()
        model.load_state_dict(load_file(GOLDEN / case["checkpoint"] / "model.safetensors"))
        config, wanted, first = model.config, held["sampled_ids"], case["given_tokens"]
        tokens = torch.full((len(wanted), first + wanted.shape[1]), UNKNOWN)
        if first:
            tokens[:, :first] = held["given_codes"] + config.code_offset
        told = held.get("condition", torch.zeros(len(wanted), 0).long()).reshape(len(wanted), -1)
        videos = [
            Video(one + config.condition_offset, ids, config.block, config.mode == "hybrid")
            for one, ids in zip(told, tokens)
        ]
        noisy = case["decode"] != "greedy"
        how = Drawing(
            case["temperature"] if noisy else 0.0,
            case["top_k"] or 0,
            1.0 if case["top_p"] is None else case["top_p"],
            case["cfg_ratio"] or 0.0,
            bool(case["scale_cfg"]),
        )

        def noise(video: int, place: int, count: int, held: Any = held, first: int = first) -> Tensor:
            return held["exp_noise"][video, place - first : place - first + count]

        with torch.no_grad():
            draw_tokens(CachedModel(model, config.prefix + tokens.shape[1]), videos, how, noise if noisy else None)
        assert torch.equal(torch.stack([video.tokens[first:] for video in videos]), wanted), case["name"]


@pytest.mark.parametrize("name", ["k600_700M", "k600_3B", "ucf_700M", "ucf_3B"])
def test_published_files_are_recognised_and_the_stand_alone_model_has_their_tensors(alone: Any, name: str) -> None:
    recorded = json.loads((GOLDEN / "released_model.json").read_text())
    sizes, hybrid = recorded["sizes"][name], name.startswith("ucf")
    shapes = {
        key.replace("{l}", str(layer)): tuple(shape)
        for key, shape in recorded["transformer_keys"][f"ucf_{name.split('_')[1]}"].items()
        for layer in (range(sizes["num_layers"]) if "{l}" in key else [0])
    }
    if not hybrid:
        words = (64_000, sizes["hidden_size"])
        shapes |= {"transformer.tok_emb.weight": words, "transformer.head.weight": words}
        shapes["transformer.uncond_embedding"] = (0, sizes["hidden_size"])
    settings = released.guessed(shapes, CodecConfig(name="fsq"), {}, name)
    assert {key: settings[key] for key in settings if key in sizes} == {k: sizes[k] for k in sizes if k in settings}
    assert settings["text_ids"] == 32_000 * hybrid and settings["prefix_kind"] == ("text" if hybrid else "none")
    with torch.device("meta"):
        model = alone.NextBlockModel(alone.NextBlockConfig(**settings))
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == {key: shape for key, shape in shapes.items() if shape[0]}
    assert sum(p.numel() for p in model.parameters()) == sizes["num_parameters"]
