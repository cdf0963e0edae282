"""Files that somebody else made: regular files only, bounded JSON, and safetensors headers checked in full before a
byte of a tensor is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The safetensors types that are read and written; a model's own parameters are floating point (`Folder.tensor` gives
whatever is stored).
"""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]*")
"""File names that are neither hidden nor able to leave a folder or to confuse a terminal."""
JSON_BYTES = 64 * 2**20
HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: ``start`` counts from the file's first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def show(value: object) -> str:
    """A value from a file in one short line: no control characters, no lone surrogates."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def real_file(path: Path, homes: tuple[Path, ...] = ()) -> Path:
    """The regular file behind a path; with ``homes`` (resolved folders) it has to lie in one of them.  ValueError
    otherwise: one line.
    """
    try:
        target = path.resolve(strict=True)
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        lost = "is a link that leads nowhere; download the file again" if path.is_symlink() else "not found"
        raise UserError(f"{path}: {lost}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened ({_reason(error)})") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file; expected a file, or a link to one")
    if homes and not any(target.is_relative_to(home) for home in homes):
        raise UserError(
            f"{path}: a link that leads out of the checkpoint folder, to {show(str(target))}; put the file "
            "itself in its place if you trust it"
        )
    return target


def _reason(error: BaseException) -> str:
    return show(getattr(error, "strerror", None) or str(error))


def _no_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from UTF-8 bytes; ValueError in one line for anything else, for NaN and infinities, and for nesting
    beyond Python's limit.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise UserError(f"{name}: nested too deeply; expected a plain JSON object") from None
    except ValueError as error:
        raise UserError(f"{name}: not JSON ({show(str(error))})") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path, homes: tuple[Path, ...] = (), most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most ``most`` bytes; ValueError names the file."""
    with open_file(real_file(path, homes), path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path}: more than {most} bytes; expected a small JSON file")
    return parse_object(data, str(path))


def open_file(target: Path, path: Path) -> Any:
    """``target`` opened for reading bytes; ValueError that names ``path`` where that is not allowed."""
    try:
        return target.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({_reason(error)})") from None


def read_tensor(place: Stored) -> Tensor:
    """One tensor, in memory of its own.

    Read rather than mapped: a mapped file that shrinks under us ends the process, and its pages would count as ours.
    """
    data = torch.empty(place.size, dtype=torch.uint8)
    with open_file(real_file(place.path), place.path) as file:
        file.seek(place.start)
        if file.readinto(data.numpy()) != place.size:
            raise UserError(f"{place.path}: changed while it was read: a tensor at byte {place.start} is cut off")
    return data.view(place.dtype).reshape(place.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """Key -> place of every tensor of a safetensors file.

    ValueError, one line with the file's name, unless the header is sound: sizes follow from shapes and types, and the
    tensors fill the file without gap or overlap.
    """
    with open_file(real_file(path), path) as file:
        total, head = os.fstat(file.fileno()).st_size, file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if length < 2 or length > HEADER_BYTES:
            what = f"a header of {length} bytes" if length >= 0 else f"{total} bytes in all"
            raise UserError(
                f"{path}: not a safetensors file, or a damaged one ({what}; at most {HEADER_BYTES} are accepted)"
            )
        if 8 + length > total:
            raise UserError(
                f"{path}: truncated: {total} bytes, and its header alone takes {8 + length}; download it again"
            )
        header = parse_object(file.read(length), f"{path}, header")
    header.pop("__metadata__", None)
    tensors = {key: _stored(path, key, entry, 8 + length) for key, entry in header.items()}
    end = 8 + length
    for key, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != end:
            raise UserError(
                f"{path}: tensor {show(key)} starts at byte {place.start} where {end} is due: overlapping or "
                "missing data"
            )
        end += place.size
    if end != total:
        what = "truncated; download it again" if end > total else "it holds data that no tensor names"
        raise UserError(f"{path}: {total} bytes where its header gives {end}: {what}")
    return tensors


def _stored(path: Path, key: str, entry: Any, data: int) -> Stored:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, kind = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not isinstance(kind, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise UserError(f"{path}: header entry {show(key)} is {show(entry)}; expected dtype, shape and data_offsets")
    if kind not in DTYPES:
        raise UserError(f"{path}: tensor {show(key)} has type {show(kind)}; expected one of {', '.join(DTYPES)}")
    size = math.prod(shape) * DTYPES[kind].itemsize
    # An empty tensor may have any other dimensions as far as its bytes go; torch cannot count beyond 2^63.
    if math.prod(n or 1 for n in shape) >= 2**60:
        raise UserError(f"{path}: tensor {show(key)} has shape {show(shape)}; expected fewer than 2^60 numbers")
    if offsets[1] - offsets[0] != size:
        raise UserError(
            f"{path}: tensor {show(key)} {kind} {show(shape)} takes {show(size)} bytes, its offsets "
            f"{show(offsets)} give another number"
        )
    return Stored(path, DTYPES[kind], tuple(shape), data + offsets[0], size)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in value)
