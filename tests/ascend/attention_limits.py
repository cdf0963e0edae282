"""What npu_fusion_attention takes, by its documentation; everything else is a RuntimeError, as on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = {"BSH": 3, "SBH": 3, "BNSD": 4, "BSND": 4}
"""Batched layouts with their number of dimensions; TND is not modelled."""
MOST_BATCHES, MOST_TOKENS, MOST_HEADS, MOST_HEAD_DIM = 2_000_000, 1_000_000, 256, 768
NEUTRAL: dict[str, Any] = {
    "pse": None,
    "padding_mask": None,
    "keep_prob": 1.0,
    "prefix": None,
    "actual_seq_qlen": None,
    "actual_seq_kvlen": None,
    "gen_mask_parallel": True,
    "sync": False,
    "softmax_layout": "",
    "softmax_in": None,
    "sink": None,
    "dropout_mask": None,
    "seed": 0,
    "offset": 0,
    "numels": 0,
}
"""Options that are not modelled, with the value that leaves them out."""


class Shape(NamedTuple):
    """Sizes of a call.  heads: of query, key and value."""

    batch: int
    heads: tuple[int, int, int]
    queries: int
    keys: int
    head_dim: int


def refuse(wrong: object, about: str) -> None:
    """RuntimeError where something is wrong."""
    if wrong:
        raise RuntimeError(f"npu_fusion_attention: {about}")


def neutral(options: Mapping[str, Any], modelled: Sequence[str]) -> None:
    """Refuses every option that is not modelled and would do something, known or not."""
    for name, value in options.items():
        if name in modelled:
            continue
        refuse(name not in NEUTRAL, f"{name} is not modelled")
        lengths = " is for the layout TND only" if name.startswith("actual_seq") else "is not modelled"
        same = value is NEUTRAL[name] or (not isinstance(value, Tensor) and value == NEUTRAL[name])
        refuse(not same, f"{name}={value if not isinstance(value, Tensor) else 'a tensor'}: {lengths}")


def check_call(query: Tensor, key: Tensor, value: Tensor, head_num: int, layout: str) -> Shape:
    """Sizes of the tensors of a call, in which everything is as documented."""
    refuse(layout not in LAYOUTS, f"input_layout={layout!r}: {', '.join(LAYOUTS)} are modelled, in capitals")
    tensors = (query, key, value)
    refuse(any(x.dtype not in DTYPES for x in tensors), f"dtype {query.dtype}: float16, bfloat16 and float32 only")
    refuse(len({x.dtype for x in tensors}) > 1, "query, key and value differ in dtype")
    refuse(any(x.dim() != LAYOUTS[layout] for x in tensors), f"{layout} has {LAYOUTS[layout]} dimensions")
    refuse(key.shape != value.shape, f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in shape")
    refuse(not 1 <= head_num <= MOST_HEADS, f"head_num={head_num}: 1 to {MOST_HEADS} query heads")
    q, k = (_sizes(x, layout) for x in (query, key))
    if layout in ("BSH", "SBH"):
        refuse(q["H"] % head_num, f"hidden size {q['H']} is no multiple of head_num={head_num}")
        q |= {"N": head_num, "D": q["H"] // head_num}
        refuse(q["D"] == 0 or k["H"] % max(q["D"], 1), f"hidden size {k['H']} of key is no multiple of {q['D']}")
        k |= {"N": k["H"] // q["D"], "D": q["D"]}
    refuse(q["N"] != head_num, f"head_num={head_num}, but query has {q['N']} heads")
    refuse(q["D"] != k["D"], f"head dimensions {q['D']} and {k['D']} differ")
    refuse(not 1 <= q["D"] <= MOST_HEAD_DIM, f"head dimension {q['D']}: 1 to {MOST_HEAD_DIM}")
    refuse(q["B"] != k["B"], f"batch sizes {q['B']} and {k['B']} differ")
    refuse(not 1 <= q["B"] <= MOST_BATCHES, f"batch size {q['B']}: 1 to {MOST_BATCHES}")
    refuse(
        not all(1 <= x["S"] <= MOST_TOKENS for x in (q, k)), f"lengths {q['S']} and {k['S']}: 1 to {MOST_TOKENS} tokens"
    )
    refuse(k["N"] < 1 or q["N"] % k["N"], f"{q['N']} query heads are no multiple of {k['N']} key heads")
    return Shape(q["B"], (q["N"], k["N"], k["N"]), q["S"], k["S"], q["D"])


def _sizes(x: Tensor, layout: str) -> dict[str, int]:
    return dict(zip(layout, x.shape))


def hidden(shape: Shape, options: Mapping[str, Any]) -> Tensor | None:
    """bool `[B or 1, N or 1, Sq, Skv]`, True where a pair does not attend; None where all do."""
    mask, mode = options["atten_mask"], options["sparse_mode"]
    refuse(mode not in (0, 1), f"sparse_mode={mode} is not modelled, 0 and 1 are")
    refuse(options["inner_precise"] != 0, f"inner_precise={options['inner_precise']} is not modelled, 0 is")
    if mask is None:
        return None
    refuse(mask.dtype not in (torch.bool, torch.uint8), f"atten_mask is {mask.dtype}: bool or uint8")
    sides, heads = (shape.queries, shape.keys), shape.heads[0]
    fitting = (sides, (1, 1, *sides), (shape.batch, 1, *sides), (shape.batch, heads, *sides))
    refuse(tuple(mask.shape) not in fitting, f"atten_mask {tuple(mask.shape)} is none of {fitting}")
    whole = mask.bool().reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    if mode == 0:
        before, after = options["pre_tockens"], options["next_tockens"]
        distance = torch.arange(shape.keys) - torch.arange(shape.queries)[:, None]
        outside = (distance < -before) | (distance > after)
        refuse((outside & ~whole).any(), "atten_mask lets pairs attend outside of pre_tockens and next_tockens")
    refuse(whole.all(-1).any(), "atten_mask has a row that hides every key, which is imprecise with inner_precise=0")
    return whole


def check_gradient(
    shape: Shape, query: Tensor, dy: Tensor, most: Tensor | None, total: Tensor | None, attention: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax_max, softmax_sum and attention_in, which the gradient cannot do without."""
    if most is None or total is None or attention is None:
        raise RuntimeError("npu_fusion_attention_grad: softmax_max, softmax_sum and attention_in are required")
    for name, x in (("dy", dy), ("attention_in", attention)):
        refuse(x.shape != query.shape, f"{name} {tuple(x.shape)} is not of the shape of query {tuple(query.shape)}")
        refuse(x.dtype != query.dtype, f"{name} is {x.dtype}, query {query.dtype}")
    expected = (shape.batch, shape.heads[0], shape.queries, 8)
    for name, x in (("softmax_max", most), ("softmax_sum", total)):
        refuse(tuple(x.shape) != expected, f"{name} {tuple(x.shape)} is not {expected}")
        refuse(x.dtype != torch.float32, f"{name} is {x.dtype}, not float32")
        refuse((x != x[..., :1]).any(), f"{name} holds different numbers in its last dimension")
    return most, total, attention
