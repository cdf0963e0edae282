"""Releases of torch, torch_npu, CANN, megatron-core and MindSpeed that belong together (docs/ascend.md)."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch
from packaging.version import Version

ROWS = {
    "2.7.1": ("2.7.1", "8.3.RC1"),
    "2.7.1.post2": ("2.7.1", "8.5.0"),
    "2.7.1.post4": ("2.7.1", "9.0.0"),
    "2.7.1.post8": ("2.7.1", "9.1.0"),
    "2.7.1.post11": ("2.7.1", ""),
    "2.13.0": ("2.13.0", ""),
    "2.14.0": ("2.14.0", ""),
}
"""torch_npu -> (torch, CANN), of Ascend's own table; "" where it does not say."""
_SINCE = {"torch": "2.7.1", "torch_npu": "2.7.1.post4", "CANN": "9.0.0"}
ASKED = {
    "mindspeed": ("MindSpeed core_r0.16.0", {**_SINCE, "megatron-core": "0.16.", "Python": "3.10."}),
    "megatron_adaptor": ("megatron_adaptor", {**_SINCE, "megatron-core": "0.17."}),
}
"""Adaptor -> what it is called, and what it asks for; of a version that ends in a dot the beginning is enough."""
NEWEST_NUMPY = "1.26.0"
"""Of MindSpeed `core_r0.16.0`."""
OPTIONAL = ("mindspeed", "megatron_adaptor", "triton-ascend", "triton", "einops", "numpy")


def found(torch_npu: Any) -> dict[str, str]:
    """Package -> version of all that is here; "unknown" where it does not say."""
    known = {"Python": platform.python_version(), "torch": str(torch.__version__)}
    known |= {"torch_npu": str(torch_npu.__version__), "CANN": _cann(torch_npu)}
    for name in ("megatron-core", *OPTIONAL):
        version = _version(name)
        if version or name == "megatron-core":
            known[name] = version or "unknown"
    return known


def _version(name: str) -> str:
    try:
        return metadata.distribution(name).version
    except metadata.PackageNotFoundError:
        return ""


def _cann(torch_npu: Any) -> str:
    ask = getattr(torch_npu.npu.utils, "get_cann_version", None)
    try:
        return str(ask()) if ask is not None else "unknown"
    # It reads files of CANN, and has failed on their encoding.
    except Exception:  # noqa: BLE001
        return "unknown"


def misfits(versions: Mapping[str, str], adaptor: str) -> Iterator[str]:
    """What is not one row of the table, one line each."""
    mine = versions["torch_npu"]
    if mine not in ROWS:
        yield f"torch_npu {mine}: not in the table of releases that belong together ({', '.join(ROWS)}); untried"
    else:
        wanted = dict(zip(("torch", "CANN"), ROWS[mine]))
        for has, asked in _differing(versions, wanted):
            yield f"{has}: torch_npu {mine} is for {asked} (docs/ascend.md)"
    if adaptor in ASKED:
        who, wanted = ASKED[adaptor]
        for has, asked in _differing(versions, wanted):
            yield f"{has}: {who} asks for {asked} (docs/ascend.md)"
    numpy = versions.get("numpy", "0")
    if adaptor == "mindspeed" and Version(numpy) > Version(NEWEST_NUMPY):
        yield f"numpy {numpy}: MindSpeed core_r0.16.0 asks for numpy {NEWEST_NUMPY} or older (docs/ascend.md)"


def _differing(versions: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what is here, what is wanted) of all that differs, nothing where all fits."""
    wrong = [name for name, version in wanted.items() if not _fits(versions.get(name, "unknown"), version)]
    if wrong:
        has = ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in wrong)
        asked = ", ".join(f"{name} {wanted[name]}{'x' if wanted[name].endswith('.') else ''}" for name in wrong)
        yield has, asked


def _fits(version: str, wanted: str) -> bool:
    if not wanted or version == "unknown":
        return True
    plain = version.split("+")[0]
    return plain.startswith(wanted) if wanted.endswith(".") else plain == wanted
