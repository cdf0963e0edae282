"""Latent shards: the posterior of every frame of a video, stored once, so that training reads it instead of decoding
and encoding.

A member ``key.safetensors`` holds one tensor: ``moments`` [F, 2, C, h, w] (mean and log-variance of the scaled latents)
or, of a deterministic codec, ``mean`` [F, C, h, w]; float32, float16 or bfloat16.  A frame is contiguous, so that a
sample reads only its frames.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ...codec.base import Codec
from ...codec.geometry import Geometry
from ...config.schema_data import DataConfig
from ...errors import UserError
from ..bad import BadVideo
from ..jobs import place, read_member
from ..plans import Sample, SamplePlan
from ..remote import Cache, is_local
from .scan import label_of

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number, by safetensors' names
RANKS = {"moments": 5, "mean": 4}
LONGEST_HEADER = 4096  # bytes; that of one tensor takes about 100


def to_stored(mean: Tensor, logvar: Tensor | None, stored: str) -> Tensor:
    """Some frames as they are stored: [F, 2, C, h, w] or, without log-variance, [F, C, h, w], on the CPU.

    Args:
        mean, logvar: float [F, C, h, w], as `Codec.encode` gives them.
        stored: a name of `STORED`.

    Raises:
        ValueError: numbers that are not finite, or too large to be stored.
    """
    latents = (mean if logvar is None else torch.stack([mean, logvar], 1)).to("cpu", STORED[stored])
    if not latents.isfinite().all():
        raise UserError(
            f"the VAE gave numbers that are not finite, or too large for {stored}: encode with --dtype=bf16 "
            "or fp32, store with --store=fp32"
        )
    return latents


def pack(pieces: list[Tensor]) -> bytes:
    """A member's bytes, of all frames of a video in pieces from `to_stored`."""
    return save({"mean" if pieces[0].ndim == 4 else "moments": torch.cat(pieces).contiguous()})


def facts_of(codec: Codec, longest_side: int, size_multiple: int, stored: str) -> dict[str, Any]:
    """What a latent data set says about itself in its index; `check_facts` compares it."""
    geometry = {
        "channels": codec.channels,
        "spatial_stride": codec.spatial_stride,
        "temporal_stride": codec.temporal_stride,
    }
    return {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        **geometry,
        "longest_side": longest_side,
        "size_multiple": size_multiple,
        "stored": stored,
    }


def check_facts(path: str, facts: dict[str, Any], config: DataConfig, codec: Geometry) -> None:
    """ValueError, one line, unless a run with this codec and these sizes can use the latents.

    A `CodecGeometry` has no identity; then only the geometry is compared.
    """
    again = "or encode the videos again (megatron-videogpt data encode)"
    if not facts:
        raise UserError(
            f"data.path={path}: latents that do not say which VAE made them: put index.json or the shards' "
            f"own .json files beside them, {again}"
        )
    for name in ("longest_side", "size_multiple"):
        theirs, ours = facts.get(name), getattr(config, name)
        if theirs != ours:
            raise UserError(
                f"data.path={path}: latents of data.{name}={theirs}, but this run has data.{name}={ours}: set "
                f"it to {theirs}, {again}"
            )
    remedy = f"use the VAE that made them in codec.name and codec.path, {again}"
    for name in ("channels", "spatial_stride", "temporal_stride"):
        theirs, ours = facts.get(name), getattr(codec, name)
        if theirs != ours:
            raise UserError(
                f"data.path={path}: latents of a VAE with {name}={theirs}, but this run's has {ours}: {remedy}"
            )
    theirs, identity = facts.get("fingerprint"), getattr(codec, "identity", None)
    if identity is not None and not identity.accepts(theirs):
        names = (
            f"latents of the VAE {facts.get('codec')} {str(theirs)[:12]}, but this run has "
            f"{getattr(codec, 'name', '')} {identity.fingerprint[:12]}"
        )
        raise UserError(f"data.path={path}: {names} (name and fingerprint{identity.reason(theirs)}): {remedy}")


def facts_begun(begun: dict[str, Any], facts: dict[str, Any], codec: Codec) -> dict[str, Any]:
    """The facts with which encoding goes on: those it was begun with, where they have just another fingerprint that an
    earlier release gave the same codec, so that all shards say the same; else ``facts``.
    """
    same = {**begun, "fingerprint": codec.fingerprint} == facts and codec.identity.accepts(begun.get("fingerprint"))
    return begun if same else facts


@dataclass(frozen=True)
class LatentsJob:
    """Frames ``plan.frames`` of a member of latents.

    url: of the tar file; key: of the member; offset, size: its bytes in the tar file; frames: of the video;
    channels, stride: of the codec.
    """

    plan: SamplePlan
    url: str
    key: str
    offset: int
    size: int
    frames: int
    channels: int
    stride: int
    cache: Cache

    @property
    def label(self) -> str:
        """Shard, key, first frame and interval."""
        return place(self._name, self.plan)

    @property
    def _name(self) -> str:
        return label_of(self.url, self.key)

    def read(self) -> Sample:
        """mean and logvar float32 [N, C, h, w] (logvar None of a deterministic codec).

        From a local file only the frames that are needed are read; a remote member is kept whole in the cache.
        """
        whole = None if is_local(self.url) else read_member(self.cache, self.url, self.key, self.offset, self.size)

        def fetch(start: int, size: int) -> bytes:
            if whole is not None:
                return whole[start : start + size]
            return read_member(self.cache, self.url, self.key, self.offset + start, size)

        kind, dtype, shape, start = parse_header(fetch(0, min(self.size, LONGEST_HEADER)), self.size, self._name)
        plan = self.plan
        expected = (
            self.frames,
            *((2,) if kind == "moments" else ()),
            self.channels,
            plan.size[0] // self.stride,
            plan.size[1] // self.stride,
        )
        if shape != expected:
            raise BadVideo(
                self._name, f"latents of shape {list(shape)} where the index gives {list(expected)}", "codec"
            )
        if plan.frames[-1] >= self.frames:
            raise BadVideo(
                self._name, f"frame {plan.frames[-1]} asked for, but it has {self.frames} frames", "too_short"
            )
        frame = math.prod(shape[1:]) * WIDTHS[dtype]
        data = b"".join(fetch(start + first * frame, count * frame) for first, count in runs(plan.frames))
        if len(data) != frame * len(plan.frames):
            raise BadVideo(self._name, "the member ends early", "truncated")
        latents = to_float32(data, dtype).reshape(len(plan.frames), *shape[1:])
        if not np.isfinite(latents).all():
            raise BadVideo(self._name, "latents that are not finite numbers", "codec")
        mean: Any = latents if kind == "mean" else np.ascontiguousarray(latents[:, 0])
        logvar: Any = None if kind == "mean" else np.ascontiguousarray(latents[:, 1])
        return Sample(
            plan.key,
            self.label,
            mean,
            logvar,
            plan.clips,
            number=plan.number,
            given=plan.given,
            dropped=plan.dropped,
        )


def parse_header(head: bytes, size: int, name: str) -> tuple[str, str, tuple[int, ...], int]:
    """(tensor's name, dtype, shape, where its bytes start) of a safetensors member of ``size`` bytes that begins with
    ``head``; BadVideo unless it is sound.
    """
    if len(head) < 8:
        raise BadVideo(name, "too short for a safetensors file", "truncated")
    (length,) = struct.unpack("<Q", head[:8])
    if length > len(head) - 8:
        kind = "truncated" if length > size - 8 and length <= LONGEST_HEADER else "metadata"
        raise BadVideo(name, f"a safetensors header of {length} bytes; that of one tensor takes about 100", kind)
    try:
        header = json.loads(head[8 : 8 + length])
        header.pop("__metadata__", None)
        ((tensor, entry),) = header.items()
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = (
            dtype in WIDTHS and RANKS.get(tensor) == len(shape) and all(type(n) is int and 0 < n < 2**31 for n in shape)
        )
        sound = sound and begin == 0 and end == math.prod(shape) * WIDTHS[dtype] and (tensor == "mean" or shape[1] == 2)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadVideo(name, "a safetensors header that is damaged, or not that of one tensor", "metadata") from error
    if not sound:
        raise BadVideo(
            name,
            f"holds {tensor!r:.40} {dtype!r:.20} {list(shape)[:8]}, not moments [F, 2, C, h, w] or mean [F, C, h, w]",
            "metadata",
        )
    if 8 + length + end != size:
        kind = "truncated" if 8 + length + end > size else "metadata"
        raise BadVideo(name, f"{size} bytes where its header gives {8 + length + end}", kind)
    return tensor, dtype, shape, 8 + length


def runs(frames: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, count) of each run of consecutive numbers."""
    groups = [[frame for _, frame in group] for _, group in groupby(enumerate(frames), lambda pair: pair[1] - pair[0])]
    return [(group[0], len(group)) for group in groups]


def to_float32(data: bytes, dtype: str) -> np.ndarray:
    """float32 [n] of little-endian numbers of a type of `WIDTHS`."""
    if dtype == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
