"""Conversion in one process: the golden checkpoint, mixed types, a stock Phi-3 folder, what does not fit, what is
damaged on the disk.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_videogpt.checkpoint.folders import newest_folder
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import TrainConfig
from megatron_videogpt.convert import command, ingest, options
from megatron_videogpt.convert.folder import Folder
from tests.conversion import MODELS, TINY, folder_of, same, tensors_of, to_folder, to_run
from tests.hub_folder import HINTS

pytestmark = pytest.mark.usefixtures("processes")


def one_line(caught: Any, *parts: str) -> str:
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text
    return text


def precision(path: Path) -> str:
    """Of a converted run's checkpoint."""
    found = newest_folder(path)
    assert found is not None and found.name == "step_00000000"
    return load_config(found / "config.toml").train.precision


def test_the_golden_checkpoint_comes_back(reference: Path, tmp_path: Path) -> None:
    golden = reference / "tiny_mha"
    with pytest.raises(ValueError) as caught:
        to_run(golden, tmp_path / "none")
    one_line(caught, "--hint-ids")
    to_run(golden, tmp_path / "run", hint_ids=(5, 6, 7))
    back = to_folder(tmp_path / "run", tmp_path / "back", license="mit")
    same(back, load_file(golden / "model.safetensors"))
    original, config = (json.loads((folder / "config.json").read_text()) for folder in (golden, tmp_path / "back"))
    assert {key: config[key] for key in original} == original
    added = {
        "patch_size": 2,
        "in_channels": 4,
        "pos_embed_max_size": 32,
        "diffusion_token_id": 5,
        "img_start_token_id": 6,
        "img_end_token_id": 7,
    }
    assert {key: config[key] for key in added} == added and config["auto_map"]["AutoModel"].endswith("VideoGPTModel")
    assert (tmp_path / "back" / "extra.json").read_bytes() == (golden / "extra.json").read_bytes()
    assert (tmp_path / "back" / "README.md").read_text().startswith("---\nlicense: mit\nlibrary_name: transformers\n")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, processes: None) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run from a folder of mixed types with an unknown tensor, and what the folder held."""
    work = tmp_path_factory.mktemp("mixed")
    tensors = tensors_of(MODELS["grouped-query"], "mixed") | {"other.counts": torch.arange(5)}
    folder = folder_of(work / "folder", MODELS["grouped-query"], tensors)
    with pytest.raises(ValueError) as caught:
        to_run(folder, work / "none")
    one_line(caught, "other.counts", "--allow-extra")
    to_run(folder, work / "run", allow_extra=True)
    return work / "run", tensors


def test_each_tensor_keeps_its_type(mixed: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, tensors = mixed
    assert precision(path) == "fp32"
    same(to_folder(path, tmp_path / "back", max_bytes=20_000), tensors)
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "back" / "LICENSE").read_text() == "terms" and json.loads(
        (tmp_path / "back" / "added_tokens.json").read_text()
    )["<img>"] == HINTS[1]
    assert "\nlicense: apache-2.0\n" in (tmp_path / "back" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_type_by_choice(mixed: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, dtype: torch.dtype) -> None:
    path, tensors = mixed
    cast = {
        key: value.to(dtype) if value.is_floating_point() and key != "pos_embed" else value
        for key, value in tensors.items()
    }
    same(to_folder(path, tmp_path / "back", dtype=dtype), cast)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix(
        "torch."
    )


def test_a_type_by_choice_on_the_way_in(tmp_path: Path) -> None:
    tensors = tensors_of(TINY, "fp32")
    to_run(folder_of(tmp_path / "folder", TINY, tensors), tmp_path / "run", dtype=torch.bfloat16)
    assert precision(tmp_path / "run") == "bf16"
    same(
        to_folder(tmp_path / "run", tmp_path / "back"),
        {key: value if key == "pos_embed" else value.bfloat16() for key, value in tensors.items()},
    )


def test_weights_alone_cannot_be_resumed(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    from megatron_videogpt.checkpoint.checks import check_same_codec
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.errors import RunError
    from megatron_videogpt.train import run

    path = mixed[0]
    config = replace(load_config(path / "config.toml"), train=TrainConfig(output=str(path), precision="fp32"))
    saved = find_checkpoint(path)
    with pytest.raises(RunError) as caught:
        run._restore(SimpleNamespace(config=config, output=path, control=None, phase=lambda text: None), saved)  # type: ignore[arg-type]
    one_line(caught, "train.init_from", "train.output")
    # Without a VAE nobody knows which codec it was.
    check_same_codec(saved, SimpleNamespace(name="any", fingerprint="123"))  # type: ignore[arg-type]


def test_a_converted_checkpoint_has_a_record_of_its_files(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder = newest_folder(mixed[0])
    assert folder is not None
    record = json.loads((folder / "files.json").read_text())
    held = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "files.json"}
    assert {name: facts["bytes"] for name, facts in record.items()} == held


def test_keys_that_do_not_fit_are_listed_together(tmp_path: Path) -> None:
    tensors = tensors_of(TINY, "fp32")
    del tensors["llm.norm.weight"], tensors["x_embedder.proj.bias"]
    tensors["llm.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 47)
    tensors["t_embedder.mlp.0.bias"] = torch.zeros(32, dtype=torch.int32)
    tensors["llm.rotary.inv_freq"] = torch.zeros(4)
    folder = folder_of(tmp_path / "folder", TINY, tensors)
    with pytest.raises(ValueError) as caught:
        to_run(folder, tmp_path / "run")
    one_line(
        caught,
        "5 tensors",
        "llm.norm.weight is missing",
        "x_embedder.proj.bias is missing",
        "[32, 47] and not [32, 48]",
        "int32",
        "llm.rotary.inv_freq",
    )
    model, channels = ingest.sizes_of(Folder(folder))
    with pytest.raises(ValueError) as caught:
        ingest.check_keys(Folder(folder), replace(model, num_layers=9), channels, allow_extra=True)
    # 7 layers of 6 tensors, and the four above.
    assert one_line(caught, "46 tensors", "and 26 more").count("; ") == 20


def test_what_was_written_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.convert import new_run, write

    folder = folder_of(tmp_path / "folder", TINY, tensors_of(TINY, "bf16"))
    with monkeypatch.context() as planted:
        planted.setattr(
            new_run,
            "shard",
            lambda entry, tensor, rank, size: tensor.flip(0) if entry.name.endswith("linear_qkv.weight") else tensor,
        )
        with pytest.raises(ValueError) as caught:
            to_run(folder, tmp_path / "wrong")
        one_line(caught, "qkv_proj", "is not what was written")
    to_run(folder, tmp_path / "run")

    def damage(*args: Any) -> Any:
        files = written(*args)
        data = bytearray(files[0].read_bytes())
        data[-1] ^= 1
        files[0].write_bytes(data)
        return files

    written = write.write_tensors
    monkeypatch.setattr(write, "write_tensors", damage)
    with pytest.raises(ValueError) as caught:
        to_folder(tmp_path / "run", tmp_path / "back")
    one_line(caught, "is not what was written")


def test_the_command_line_says_what_it_expects(tmp_path: Path) -> None:
    assert [options.size(text) for text in ("5GB", "500mb", "1.5K", "7")] == [5 * 10**9, 5 * 10**8, 1500, 7]
    for text in ("", "GB", "-1", "0", "5XB"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 5GB"):
            options.size(text)
    assert options.ids("1,2,3") == (1, 2, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="32011,32012,32013"):
        options.ids("1,2")
    with pytest.raises(ValueError, match="exists already"):
        command.check_output(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        command.check_output(tmp_path / "a" / "b")
    with pytest.raises(KeyboardInterrupt), command.appearing(tmp_path / "new") as partial:
        partial.mkdir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with command.appearing(tmp_path / "new") as partial:
        partial.mkdir()
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_tokenizer_in_place_of_the_one_that_came_along(
    tmp_path: Path, mixed: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    (tmp_path / "tokens").mkdir()
    for name in ("tokenizer.json", "config.json", "LICENSE"):
        (tmp_path / "tokens" / name).write_text("{}")
    to_folder(mixed[0], tmp_path / "back", tokenizer=tmp_path / "tokens")
    assert (tmp_path / "back" / "tokenizer.json").is_file() and not (tmp_path / "back" / "added_tokens.json").exists()
    assert (tmp_path / "back" / "LICENSE").read_text() == "terms" and len(
        (tmp_path / "back" / "config.json").read_text()
    ) > 100
