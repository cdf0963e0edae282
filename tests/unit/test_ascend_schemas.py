"""Registrations of torch_npu's operators: how they are read out of a wheel, and that the stored ones are theirs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.errors import UserError
from tests.ascend import operators
from tools import npu_schemas

TOOL = Path(npu_schemas.__file__)
TEXTS = {name: f"{name}(Tensor x, *, int? y=None) -> (Tensor, Tensor)" for name in npu_schemas.OPERATORS}


def library(texts: dict[str, str]) -> bytes:
    """Strings as a compiler lays them out, among calls that only look like registrations."""
    others = [f"acl_op::{name}(self, gamma)" for name in texts] + ["npu_swiglu_quant(Tensor x) -> Tensor"]
    return b"\x7fELF\x01" + b"\0".join(text.encode() for text in ["", *others, *texts.values(), "npu_swiglu", ""])


def wheel(folder: Path, texts: dict[str, str], version: str = "9.9") -> Path:
    path = folder / f"torch_npu-{version}-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(npu_schemas.LIBRARY, library(texts))
        archive.writestr(f"torch_npu-{version}.dist-info/METADATA", "Name: torch_npu\nRequires-Dist: torch==9.9\n\n")
    return path


def stored() -> dict[str, Any]:
    return json.loads(npu_schemas.OUTPUT.read_text(encoding="utf-8"))["wheels"]


def test_the_stored_schemas_are_those_of_three_versions() -> None:
    assert tuple(stored()) == npu_schemas.VERSIONS == operators.VERSIONS
    for held in stored().values():
        assert tuple(held["schemas"]) == npu_schemas.OPERATORS
        assert all(torch._C.parse_schema(text).name == name for name, text in held["schemas"].items())


def test_keywords_of_the_attention_that_all_wheels_share() -> None:
    """Those that a training step may use."""
    for name, scale in (("npu_fusion_attention", "scale"), ("npu_fusion_attention_grad", "scale_value")):
        schemas = [torch._C.parse_schema(held["schemas"][name]) for held in stored().values()]
        shared = set.intersection(*({argument.name for argument in schema.arguments} for schema in schemas))
        assert {"query", "key", "value", "head_num", "input_layout", "atten_mask", "sparse_mode", scale} <= shared
        assert not {"sink", "dropout_mask"} & shared


def test_texts_are_read_and_written(tmp_path: Path) -> None:
    path = wheel(tmp_path, TEXTS)
    command = [sys.executable, TOOL, "9.9", "--wheels", tmp_path, "--output", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    (held,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["wheels"].values()
    assert (held["file"], held["torch"], held["schemas"]) == (path.name, "==9.9", TEXTS)


def test_what_is_not_registered_once_is_told(tmp_path: Path) -> None:
    few = {name: text for name, text in TEXTS.items() if name != "npu_swiglu"}
    with pytest.raises(UserError, match="0 registrations of npu_swiglu instead"):
        npu_schemas.read(wheel(tmp_path, few))
    twice = library(TEXTS | {"other": "npu_swiglu(Tensor y) -> Tensor"})
    with pytest.raises(UserError, match="2 registrations of npu_swiglu instead"):
        npu_schemas.registered(twice, npu_schemas.OPERATORS)
    (tmp_path / "damaged.whl").write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged.whl: not a wheel of torch_npu"):
        npu_schemas.read(tmp_path / "damaged.whl")


def test_a_wheel_that_pip_cannot_get_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="torch_npu 9.9: pip cannot download .*pass --wheels FOLDER"):
        npu_schemas.download("9.9", "x86_64", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("version", npu_schemas.VERSIONS[:2])
def test_the_wheels_on_the_index_hold_what_is_stored(version: str, tmp_path: Path) -> None:
    try:
        path = npu_schemas.download(version, "x86_64", tmp_path)
    except UserError as error:
        pytest.skip(f"no index with torch_npu within reach of pip: {error}")
    assert npu_schemas.read(path) == stored()[version]
