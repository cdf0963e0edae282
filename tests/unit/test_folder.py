"""Folders that other people made: what is broken or malicious is refused in one line, and nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.convert.folder import WEIGHTS, Folder
from megatron_videogpt.convert.released import read_model_config, tensor_source
from megatron_videogpt.convert.table import parameters

from ..release import MODEL, refused, shard, sound_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder of one file."""
    return sound_folder(tmp_path / "model")


def test_the_cache_of_the_hub_is_read_through_its_links(folder: Path, tmp_path: Path) -> None:
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cache / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    assert read_model_config(snapshot) == (MODEL, 4)
    assert Folder(snapshot).carried() == [Path("LICENSE"), Path("vae/config.json")]


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    torch.save(Bomb(marker), tmp_path / "zip")
    (folder / "vae").mkdir()
    (folder / "tokenizer").mkdir()
    names = [
        "pytorch_model.bin",
        "a.pt",
        "a.pth",
        "a.ckpt",
        "a.pkl",
        "vae/diffusion_pytorch_model.bin",
        "tokenizer/tokenizer.pkl",
        "modeling_phi3.py",
    ]
    for name in names:
        (folder / name).write_bytes(bomb)
    (folder / "model.pt").write_bytes((tmp_path / "zip").read_bytes())
    opened = Folder(folder)
    assert read_model_config(folder) == (MODEL, 4) and opened.carried() == [] and opened.hint_ids() is None
    weights = (folder / WEIGHTS).read_bytes()
    for data in (bomb, (tmp_path / "zip").read_bytes()):
        (folder / WEIGHTS).write_bytes(data)
        refused(folder, WEIGHTS)
    (folder / WEIGHTS).unlink()
    refused(folder, "a.ckpt", "never opened", "safetensors")
    (folder / WEIGHTS).write_bytes(weights)
    for name in ("tokenizer.json", "extra.json"):
        (folder / name).write_bytes(bomb)
        refused(folder, name, "not JSON", call=lambda path: (read_model_config(path), Folder(path).hint_ids()))
        (folder / name).unlink()
    (folder / "config.json").write_bytes(bomb)
    refused(folder, "config.json", "not JSON")
    assert not marker.exists()
    pickle.loads(bomb)  # noqa: S301
    assert marker.exists(), "the bomb would have gone off"


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def place(begin: Any, end: Any, shape: Any = (1,), kind: Any = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "0 bytes in all"),
        (b"\x08\0\0", "3 bytes in all"),
        (header({}, length=2**63), "a header of 9223372036854775808 bytes"),
        (header({}, length=2**40), "a header of"),
        (header({}, length=50), "truncated"),
        (header(b"[1, 2]"), "expected a JSON object"),
        (header(b'{"a":' * 100000), "nested too deeply"),
        (header(b'{"a": NaN}'), "not JSON"),
        (header(b"\xff\xfe{}"), "not JSON"),
        (header({"a": 3}), "expected dtype, shape"),
        (header({"a": place(0, 4, kind=["F32"])}, bytes(4)), "expected dtype, shape"),
        (header({"a": place(0, 4, shape=[True])}, bytes(4)), "expected dtype, shape"),
        (header({"a": place(-4, 0)}, bytes(4)), "expected dtype, shape"),
        (header({"a": place(0, 4.0)}, bytes(4)), "expected dtype, shape"),
        (header({"a": place(0, 4, kind="F8_E4M3", shape=[4])}, bytes(4)), "F8_E4M3"),
        (header({"a": place(0, 4, shape=[2])}, bytes(4)), "takes 8 bytes"),
        (header({"a": place(0, 2**62, shape=[2**60])}, bytes(4)), "2^60"),
        (header({"a": place(0, 0, shape=[2**50, 2**50, 0])}), "2^60"),
        (header({"a": place(0, 4), "b": place(0, 4)}, bytes(4)), "overlapping"),
        (header({"a": place(0, 4), "b": place(2, 6)}, bytes(6)), "overlapping"),
        (header({"a": place(4, 8)}, bytes(8)), "missing data"),
        (header({"a": place(0, 4)}, bytes(3)), "truncated"),
        (header({"a": place(0, 4)}, bytes(5)), "no tensor names"),
        (header({"\x1b[2J\n\ud800": place(0, 4, kind="\x1b]0;")}, bytes(4)), "\\x1b]0;"),
    ],
)
def test_damaged_weights_are_refused_with_the_files_name(folder: Path, data: bytes, part: str) -> None:
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, WEIGHTS, part)


def test_a_file_of_gigabytes_is_not_read_for_its_header(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 2**34))
        file.truncate(2**35)
    refused(folder, WEIGHTS, "a header of 17179869184 bytes")


def test_a_file_that_shrinks_after_opening(folder: Path) -> None:
    opened = Folder(folder)
    last = opened.keys()[-1]
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate((folder / WEIGHTS).stat().st_size - 1)
    refused(
        folder,
        WEIGHTS,
        "changed while it was read",
        call=lambda path: [opened.tensor(key) for key in (*opened.keys(), last)],
    )


def test_random_damage_is_refused_or_harmless(folder: Path) -> None:
    shard(folder, 40_000)
    names = [name for name in sorted(os.listdir(folder)) if name != "README.md"]
    whole = {name: (folder / name).read_bytes() for name in names}
    draw, outcomes = random.Random(0), {"refused": 0, "read": 0}
    for case in range(150):
        name = names[case % len(names)]
        data = bytearray(whole[name])
        # Headers are a small part of a file of weights, and the part that matters.
        reach = min(len(data), 3000)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(reach)
            change = draw.randrange(4)
            if change == 0:
                data[at] ^= 1 << draw.randrange(8)
            elif change == 1:
                del data[at : at + draw.randrange(1, 40)]
            elif change == 2:
                data[at:at] = draw.choice((b"0", b"-", b"9" * 30, b'"', b"[", b"\xff", b"null", b"1e9"))
            else:
                data = data[: draw.randrange(len(data) + 1)]
            reach = max(min(len(data), 3000), 1)
            data = data or bytearray(1)
        (folder / name).write_bytes(data)
        try:
            model, channels = read_model_config(folder)
            source = tensor_source(folder, (1, 2, 3))
            for entry in parameters(model):
                assert tuple(source(entry).shape) == entry.shape(model, channels)
            opened = Folder(folder)
            assert all(opened.tensor(key).shape == opened.shape(key) for key in opened.keys())
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
        (folder / name).write_bytes(whole[name])
    assert outcomes["refused"] > 80 and outcomes["read"] > 5, outcomes
