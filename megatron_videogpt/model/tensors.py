"""Tensors of one parameter as `parameters` has them: released layout, our layout, tensor parallel shards, start values.
Pure torch: no megatron-core here.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import ModelConfig
from .parameters import Parameter, padded_words


def from_hf(parameter: Parameter, tensor: Tensor, model: ModelConfig) -> Tensor:
    """Released tensor -> our full (unsharded) tensor.

    patch: ``[D, C, p, p]`` -> ``[D, p*p*C]``, channel fastest, as the head orders its output; frame_patch: the same
    from ``[D, C, 1, p, p]``.
    qkv, weight or bias: all queries, keys, values -> per key/value group its queries, key, value (megatron-core's
    order).  kv: all keys, all values -> per key/value head its key, its value.
    one: a first axis of one entry goes.  vocabulary: rows of zeros up to `parameters.padded_words`.
    """
    form, width = parameter.rule.form, model.hidden_size
    if form in ("patch", "frame_patch"):
        whole = tensor if form == "patch" else tensor.squeeze(2)
        return whole.permute(0, 2, 3, 1).reshape(width, -1)
    if form == "kv":
        heads = (model.kv_heads, model.head_dim, *tensor.shape[1:])
        return torch.stack([half.reshape(heads) for half in tensor.chunk(2)], dim=1).reshape(tensor.shape)
    if form == "qkv":
        groups, dim = model.kv_heads, model.head_dim
        query, key, value = tensor.split([model.num_attention_heads * dim, groups * dim, groups * dim])
        parts = [part.reshape(groups, -1, dim, *tensor.shape[1:]) for part in (query, key, value)]
        return torch.cat(parts, dim=1).reshape(tensor.shape)
    if form == "one":
        return tensor.squeeze(0)
    if form == "vocabulary":
        return F.pad(tensor, (0, 0, 0, padded_words(len(tensor)) - len(tensor)))
    return tensor


def to_hf(parameter: Parameter, tensor: Tensor, model: ModelConfig) -> Tensor:
    """Our full tensor -> released tensor; the inverse of `from_hf`."""
    form, width = parameter.rule.form, model.hidden_size
    if form in ("patch", "frame_patch"):
        patch = model.patch_size
        whole = tensor.reshape(width, patch, patch, -1).permute(0, 3, 1, 2).contiguous()
        return whole if form == "patch" else whole.unsqueeze(2)
    if form == "kv":
        pairs = tensor.reshape(model.kv_heads, 2, model.head_dim, *tensor.shape[1:])
        return pairs.transpose(0, 1).reshape(tensor.shape)
    if form == "qkv":
        groups, dim = model.kv_heads, model.head_dim
        heads = model.num_attention_heads // groups
        parts = tensor.reshape(groups, heads + 2, dim, *tensor.shape[1:]).split([heads, 1, 1], dim=1)
        return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])
    if form == "one":
        return tensor.unsqueeze(0)
    if form == "vocabulary":
        return tensor[: parameter.shape(model, 0)[0]]
    return tensor


def shard(parameter: Parameter, tensor: Tensor, rank: int, size: int) -> Tensor:
    """The part of our full tensor that tensor parallel rank `rank` of `size` holds (gate and up are
    split apart first).
    """
    split = parameter.rule.split
    if split is None or size == 1:
        return tensor
    if parameter.rule.form == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size, dim=split)[rank].contiguous()


def unshard(parameter: Parameter, parts: list[Tensor]) -> Tensor:
    """All ranks' parts -> our full tensor; the inverse of `shard`."""
    split = parameter.rule.split
    if split is None or len(parts) == 1:
        return parts[0]
    if parameter.rule.form == "gate_up":
        return torch.cat([torch.cat(halves) for halves in zip(*(part.chunk(2) for part in parts))])
    return torch.cat(parts, dim=split)


def initial(parameter: Parameter, model: ModelConfig, channels: int, seed: int) -> Tensor:
    """The released-layout float32 tensor a run from scratch starts with (reference README section 7), drawn from (seed,
    key) alone, so that it does not depend on the parallel layout.
    """
    shape, init = parameter.shape(model, channels), parameter.rule.init
    if init in ("zeros", "ones"):
        return torch.full(shape, float(init == "ones"))
    if init == "identity":
        return torch.eye(*shape)
    digest = hashlib.blake2b(f"{seed}/{parameter.hf}".encode(), digest_size=8).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    if init == "xavier":
        bound = (6.0 / (shape[0] + math.prod(shape[1:]))) ** 0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=draws)
    assert init in ("normal", "unit")
    deviation = model.init_std if init == "normal" else shape[-1] ** -0.5
    return torch.empty(shape).normal_(0.0, deviation, generator=draws)
