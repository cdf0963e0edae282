"""Which files of a Hugging Face folder are read, and which of them travel along."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file

from megatron_videogpt.convert.folder import INDEX, WEIGHTS, Folder
from megatron_videogpt.convert.released import read_model_config

from ..release import CONFIG, MODEL, refused, shard, sound_folder, tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder of one file."""
    return sound_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "a.safetensors\0",
        ".hidden.safetensors",
        "pytorch_model.bin",
        "",
        7,
        None,
    ]
    + ["a\n.safetensors", "x" * 300 + ".safetensors", "~/a.safetensors", "file:a.safetensors", "\ud800.safetensors"],
)
def test_an_index_names_plain_files_only(folder: Path, name: object) -> None:
    index = shard(folder)
    index["weight_map"]["pos_embed"] = name
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, INDEX, "pos_embed", "plain name")


def test_index_and_shards_agree(folder: Path) -> None:
    index = shard(folder)
    names = sorted(set(index["weight_map"].values()))
    home = index["weight_map"]["pos_embed"]
    other = next(name for name in names if name != home)

    def write(changed: dict[str, str]) -> None:
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": changed}))

    write({**index["weight_map"], "pos_embed": other})
    refused(folder, INDEX, "pos_embed", other)
    write({key: value for key, value in index["weight_map"].items() if key != "pos_embed"})
    refused(folder, INDEX, "pos_embed", "the index names None")
    write({**index["weight_map"], "more": home})
    refused(folder, INDEX, "'more'", "does not hold it")
    write({**index["weight_map"], "more": "gone.safetensors"})
    refused(folder, "gone.safetensors", "not found")
    (folder / INDEX).write_text('{"weight_map": []}')
    refused(folder, INDEX, "expected weight_map")
    (folder / INDEX).write_text('{"weight_map":' + "[" * 200000)
    refused(folder, INDEX, "nested too deeply")
    write(index["weight_map"])
    save_file(tensors(), folder / WEIGHTS)
    refused(folder, WEIGHTS, "does not name it")
    (folder / INDEX).unlink()
    refused(folder, "is in model-000", "and in model.safetensors")


def test_what_is_not_a_plain_file_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(CONFIG))
    (folder / "config.json").unlink()
    refused(folder, "config.json", "not found")
    (folder / "config.json").symlink_to(secret)
    refused(folder, "config.json", "leads out of the checkpoint folder")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "config.json", "not a regular file")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, "config.json", "cannot be opened")
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
    (folder / WEIGHTS).symlink_to(tmp_path / "gone")
    refused(folder, WEIGHTS, "leads nowhere")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    refused(folder, WEIGHTS, "not a regular file")
    (folder / WEIGHTS).unlink()
    # Weights on another disk.
    (folder / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    assert read_model_config(folder) == (MODEL, 4)
    (folder / "bad\x1b[2J.safetensors").write_bytes(b"")
    refused(folder, "\\x1b", "rename it")
    refused(tmp_path / "gone", "no such folder")


def test_what_travels_along(folder: Path, tmp_path: Path) -> None:
    wanted = [
        "LICENSE",
        "NOTICE.txt",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer/vocab.json",
        "vae/config.json",
        "vae/d/weights.safetensors",
    ]
    for name in [
        *wanted,
        "README.md",
        "modeling.py",
        "LICENSE.py",
        "vae/x.py",
        "vae/x.bin",
        "vae/.git/config",
        "other/file.json",
        "model_index.json",
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    carried = lambda path: Folder(path).carried()  # noqa: E731
    assert sorted(map(str, carried(folder))) == sorted(wanted)
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": "0x1234"}')
    for name in ("special_tokens_map.json", "vae/more.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        refused(folder, name, "leads out of the checkpoint folder", call=carried)
        if name == "tokenizer.json":
            refused(folder, name, "leads out of the checkpoint folder", call=lambda path: Folder(path).hint_ids())
        (folder / name).unlink()
    (folder / "vae" / "up").symlink_to(tmp_path)
    refused(folder, "vae/up", "a link to a folder", call=carried)
    (folder / "vae" / "up").unlink()
    with (folder / "vae" / "big.safetensors").open("wb") as file:
        file.truncate(2**33)
    refused(folder, "8589934", call=carried)
    (folder / "vae" / "big.safetensors").unlink()
    for number in range(201):
        (folder / "tokenizer" / f"{number}.json").write_text("")
    refused(folder, "more than 200", call=carried)
