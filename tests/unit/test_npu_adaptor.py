"""What adapts megatron-core to NPUs, who names it, and releases that belong together."""

from __future__ import annotations

import pytest

from megatron_videogpt.errors import UserError
from megatron_videogpt.platforms import npu_adaptor, npu_versions

RIGHT = {
    "Python": "3.10.16",
    "torch": "2.7.1+cpu",
    "torch_npu": "2.7.1.post4",
    "CANN": "9.0.0",
    "megatron-core": "0.16.1",
}


@pytest.mark.parametrize(
    "changed, adaptor, lines",
    [
        ({"numpy": "1.26.0"}, "mindspeed", []),
        ({"numpy": "2.4.6"}, "mindspeed", ["numpy 2.4.6: MindSpeed core_r0.16.0 asks for numpy 1.26.0"]),
        ({"numpy": "1.26.4"}, "mindspeed", ["numpy 1.26.4: MindSpeed core_r0.16.0 asks for numpy 1.26.0 or older"]),
        ({"numpy": "1.24.3"}, "mindspeed", []),
        ({"numpy": "2.4.6"}, "own", []),
        ({"Python": "3.11.9"}, "mindspeed", ["Python 3.11.9: MindSpeed core_r0.16.0 asks for Python 3.10.x"]),
        ({"Python": "3.11.9"}, "own", []),
        ({"megatron-core": "0.17.1", "Python": "3.11.9"}, "megatron_adaptor", []),
        ({}, "megatron_adaptor", ["megatron-core 0.16.1: megatron_adaptor asks for megatron-core 0.17.x"]),
        (
            {"megatron-core": "0.17.1", "torch_npu": "2.7.1.post8", "CANN": "9.1.0"},
            "megatron_adaptor",
            ["torch_npu 2.7.1.post8, CANN 9.1.0: megatron_adaptor asks for torch_npu 2.7.1.post4, CANN 9.0.0"],
        ),
        ({"CANN": "8.5.0"}, "own", ["CANN 8.5.0: torch_npu 2.7.1.post4 is for CANN 9.0.0"]),
        ({"CANN": "unknown"}, "own", []),
        ({"torch": "2.13.0"}, "own", ["torch 2.13.0: torch_npu 2.7.1.post4 is for torch 2.7.1"]),
        ({"torch": "2.13.0", "torch_npu": "2.13.0"}, "own", []),
        ({"torch_npu": "2.9.0"}, "own", ["torch_npu 2.9.0: not in the table"]),
        ({"torch_npu": "2.7.1", "CANN": "8.3.RC1"}, "mindspeed", ["torch_npu 2.7.1, CANN 8.3.RC1: MindSpeed"]),
        ({"megatron-core": "0.17.1"}, "mindspeed", ["megatron-core 0.17.1: MindSpeed core_r0.16.0 asks for"]),
    ],
)
def test_versions_that_do_not_belong_together(changed: dict[str, str], adaptor: str, lines: list[str]) -> None:
    found = list(npu_versions.misfits(RIGHT | changed, adaptor))
    assert len(found) == len(lines) and all(line.startswith(begin) for line, begin in zip(found, lines)), found


@pytest.mark.parametrize(
    "there, core, release, expected",
    [
        (("mindspeed", "megatron_adaptor", "triton", "einops"), "0.16.1", "2.7.1.post4", "mindspeed"),
        (("mindspeed", "megatron_adaptor", "triton", "einops"), "0.17.1", "2.7.1.post4", "megatron_adaptor"),
        (("megatron_adaptor",), "0.16.1", "2.7.1.post4", "own"),
        (("mindspeed",), "0.19.2", "2.13.0", "own"),
        (("mindspeed", "megatron_adaptor", "triton", "einops"), "0.18.0", "2.7.1.post4", "own"),
        (("megatron_adaptor",), "0.19.2", "2.13.0", "own"),
        (("megatron_adaptor",), "0.17.0", "2.7.1.post4", "megatron_adaptor"),
        ((), "0.16.1", "2.14.0", "own"),
        ((), "0.16.1", "2.7.1.post2", "train.adaptor=own: needs torch_npu 2.7.1.post4 or newer"),
        (("mindspeed", "einops"), "0.16.1", "2.7.1", "MindSpeed imports the package triton, which is missing"),
        (("mindspeed", "triton"), "0.16.1", "2.7.1", "the package einops, which is missing; pip install einops"),
    ],
)
def test_which_adaptor(
    there: tuple[str, ...], core: str, release: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npu_adaptor, "installed", lambda name: name in there)
    versions = {"megatron-core": core, "torch_npu": release}
    if expected in npu_adaptor.ADAPTORS:
        name, why = npu_adaptor.choose("auto", versions)
        assert name == expected and why
    else:
        with pytest.raises(UserError, match=expected.replace(".", r"\.")):
            npu_adaptor.choose("auto", versions)


def test_an_adaptor_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu_adaptor, "installed", lambda name: name != "mindspeed")
    with pytest.raises(UserError, match="train.adaptor=mindspeed: the package mindspeed is missing; check out"):
        npu_adaptor.choose("mindspeed", RIGHT)
    assert npu_adaptor.choose("megatron_adaptor", RIGHT) == ("megatron_adaptor", "as configured")
    with pytest.raises(UserError, match="train.adaptor=apex: expected auto or one of mindspeed"):
        npu_adaptor.choose("apex", RIGHT)


@pytest.mark.parametrize(
    "configured, variable, expected",
    [
        ("auto", None, ("auto", "train.adaptor")),
        ("auto", "", ("auto", "train.adaptor")),
        ("auto", "own", ("own", "MVG_ADAPTOR")),
        ("mindspeed", "own", ("mindspeed", "train.adaptor")),
        (None, None, ("auto", "MVG_ADAPTOR")),
        (None, "own", ("own", "MVG_ADAPTOR")),
    ],
)
def test_where_an_adaptor_is_named(configured: str | None, variable: str | None, expected: tuple[str, str]) -> None:
    environment = {} if variable is None else {"MVG_ADAPTOR": variable}
    assert npu_adaptor.asked(configured, environment) == expected


def test_a_message_names_what_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu_adaptor, "installed", lambda name: name == "mindspeed")
    for where in ("train.adaptor", "MVG_ADAPTOR"):
        with pytest.raises(UserError, match=f"^{where}=mindspeed: .* triton, .*, or use {where}=own$"):
            npu_adaptor.choose("auto", RIGHT, where)
        with pytest.raises(UserError, match=f"^{where}=transfer: expected auto or one of mindspeed"):
            npu_adaptor.choose("transfer", RIGHT, where)
        with pytest.raises(UserError, match=f"^{where}=megatron_adaptor: the package .*, or use {where}=own$"):
            npu_adaptor.choose("megatron_adaptor", RIGHT, where)
    assert npu_adaptor.choose("own", RIGHT, "MVG_ADAPTOR") == ("own", "as MVG_ADAPTOR says")
