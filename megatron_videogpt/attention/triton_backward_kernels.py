"""Backward kernels of interval attention in Triton: weights are computed again from the log-sum-exp, tile by tile
(FlashAttention-2, Dao 2023).

Gradients of keys and values walk, per tile of keys, the tiles of rows that attend it; heads that share a key-value head
are summed in the program. Gradients of queries have a kernel of their own (the same numbers in every run) or are added
up with atomics from the other (five products a tile, not seven).  Chunks of columns and walks as in `triton_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import FULL, LOG2E, PARTIAL, inner_products, load_rows, load_spans, sees, store_rows


@triton.jit(do_not_specialize=["rows"])
def delta_kernel(
    out, grad, delta, rows, stride_out, stride_out_head, stride_grad, stride_grad_head,
    ROW_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Grid (query heads, tiles of rows).  delta ``[H, rows]`` float32: the inner product of output and gradient of
    every row.
    """
    head = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * ROW_TILE
    out0, out1 = load_rows(out + head * stride_out_head, start, stride_out, rows, ROW_TILE, FIRST, SECOND, True)
    grad0, grad1 = load_rows(grad + head * stride_grad_head, start, stride_grad, rows, ROW_TILE, FIRST, SECOND, True)
    inner = tl.sum(out0.to(tl.float32) * grad0.to(tl.float32), 1)
    if SECOND > 0:
        inner += tl.sum(out1.to(tl.float32) * grad1.to(tl.float32), 1)
    row = start + tl.arange(0, ROW_TILE)
    tl.store(delta + head * rows + row, inner, mask=row < rows)


@triton.jit
def _add_query_gradient(
    grad_q, to_score, k0, k1, start, rows, stride, scale, ROW_TILE: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr
):  # fmt: skip
    """Add one tile of keys' share to float32 gradients of queries, in any order; to_score ``[KEY_TILE, ROW_TILE]``."""
    row = tl.arange(0, ROW_TILE)
    place = grad_q + start.to(tl.int64) * stride + row[:, None] * stride
    inside = (start + row < rows)[:, None]
    share = tl.dot(tl.trans(to_score), k0, input_precision="ieee") * scale
    tl.atomic_add(place + tl.arange(0, FIRST)[None, :], share, mask=inside, sem="relaxed")
    if SECOND > 0:
        share = tl.dot(tl.trans(to_score), k1, input_precision="ieee") * scale
        tl.atomic_add(place + FIRST + tl.arange(0, SECOND)[None, :], share, mask=inside, sem="relaxed")


@triton.jit
def _key_value_walk(
    dk0, dk1, dv0, dv1, k0, k1, v0, v1, q, grad, lse, delta, grad_q, intervals, counts, lists, tile, rows, width,
    stride_q, stride_grad, stride_grad_q, scale,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, KIND: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys (not yet times the scale) and values from the full or the partial tiles of rows of
    one query head.
    """
    log_scale = scale * LOG2E
    key = tile * KEY_TILE + tl.arange(0, KEY_TILE)
    count = tl.load(counts + tile * 2 + KIND)
    entry = lists + (tile * 2 + KIND) * width
    following = tl.load(entry)
    for j in range(0, count):
        start = following * ROW_TILE
        following = tl.load(entry + j + 1, mask=j + 1 < count, other=0)
        row = start + tl.arange(0, ROW_TILE)
        # A full tile may hold rows from `rows` on: their weight is 1, and they add nothing, because they are read as
        # zeros.
        q0, q1 = load_rows(q, start, stride_q, rows, ROW_TILE, FIRST, SECOND, True)
        grad0, grad1 = load_rows(grad, start, stride_grad, rows, ROW_TILE, FIRST, SECOND, True)
        row_lse = tl.load(lse + row, mask=row < rows, other=0.0)
        row_delta = tl.load(delta + row, mask=row < rows, other=0.0)
        score = tl.zeros([KEY_TILE, ROW_TILE], tl.float32)
        if KIND == PARTIAL:
            # Masking the start of the scores and not the weights frees the spans' registers before the products need
            # them.
            a0, a1, b0, b1 = load_spans(intervals, row, rows)
            score = tl.where(
                sees(key[:, None], a0[None, :], a1[None, :], b0[None, :], b1[None, :]), score, float("-inf")
            )
        weight = tl.exp2(inner_products(score, k0, k1, q0, q1, SECOND) * log_scale - row_lse[None, :])
        dv0 = tl.dot(weight.to(grad0.dtype), grad0, dv0, input_precision="ieee")
        if SECOND > 0:
            dv1 = tl.dot(weight.to(grad0.dtype), grad1, dv1, input_precision="ieee")
        change = inner_products(tl.zeros([KEY_TILE, ROW_TILE], tl.float32), v0, v1, grad0, grad1, SECOND)
        to_score = (weight * (change - row_delta[None, :])).to(q0.dtype)
        dk0 = tl.dot(to_score, q0, dk0, input_precision="ieee")
        if SECOND > 0:
            dk1 = tl.dot(to_score, q1, dk1, input_precision="ieee")
        if ATOMIC:
            _add_query_gradient(grad_q, to_score, k0, k1, start, rows, stride_grad_q, scale, ROW_TILE, FIRST, SECOND)
    return dk0, dk1, dv0, dv1


@triton.jit(do_not_specialize=["rows", "keys", "width"])
def key_value_kernel(
    q, k, v, grad, lse, delta, grad_q, grad_k, grad_v, intervals, order, counts, lists, rows, keys, width, scale,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head, stride_grad, stride_grad_head,
    stride_grad_q, stride_grad_q_head, stride_grad_k, stride_grad_k_head,
    GROUP: tl.constexpr, ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    """Grid (key-value heads, tiles of keys).  Writes grad_k and grad_v (equal strides); ATOMIC: adds to grad_q, float32
    zeros at first.
    """
    head = tl.program_id(0).to(tl.int64)
    tile = tl.load(order + tl.program_id(1))
    start = tile * KEY_TILE
    k0, k1 = load_rows(k + head * stride_k_head, start, stride_k, keys, KEY_TILE, FIRST, SECOND, True)
    v0, v1 = load_rows(v + head * stride_v_head, start, stride_v, keys, KEY_TILE, FIRST, SECOND, True)
    dk0 = tl.zeros([KEY_TILE, FIRST], tl.float32)
    dv0 = tl.zeros([KEY_TILE, FIRST], tl.float32)
    dk1 = dk0
    dv1 = dv0
    if SECOND > 0:
        dk1 = tl.zeros([KEY_TILE, SECOND], tl.float32)
        dv1 = tl.zeros([KEY_TILE, SECOND], tl.float32)
    for member in range(0, GROUP):
        query_head = head * GROUP + member
        dk0, dk1, dv0, dv1 = _key_value_walk(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, q + query_head * stride_q_head, grad + query_head * stride_grad_head,
            lse + query_head * rows, delta + query_head * rows, grad_q + query_head * stride_grad_q_head,
            intervals, counts, lists, tile, rows, width, stride_q, stride_grad, stride_grad_q, scale,
            ROW_TILE, KEY_TILE, FIRST, SECOND, FULL, ATOMIC,
        )  # fmt: skip
        dk0, dk1, dv0, dv1 = _key_value_walk(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, q + query_head * stride_q_head, grad + query_head * stride_grad_head,
            lse + query_head * rows, delta + query_head * rows, grad_q + query_head * stride_grad_q_head,
            intervals, counts, lists, tile, rows, width, stride_q, stride_grad, stride_grad_q, scale,
            ROW_TILE, KEY_TILE, FIRST, SECOND, PARTIAL, ATOMIC,
        )  # fmt: skip
    store_rows(
        grad_k + head * stride_grad_k_head,
        start,
        stride_grad_k,
        keys,
        dk0 * scale,
        dk1 * scale,
        KEY_TILE,
        FIRST,
        SECOND,
    )
    store_rows(grad_v + head * stride_grad_k_head, start, stride_grad_k, keys, dv0, dv1, KEY_TILE, FIRST, SECOND)


@triton.jit
def _query_walk(
    dq0, dq1, q0, q1, grad0, grad1, row_lse, row_delta, k, v, intervals, counts, lists, tile, rows, keys, width,
    stride_k, stride_v, log_scale,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries (not yet times the scale) from the full or the partial tiles of keys."""
    row = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    column = tl.arange(0, KEY_TILE)
    if KIND == PARTIAL:
        a0, a1, b0, b1 = load_spans(intervals, row, rows)
    count = tl.load(counts + tile * 2 + KIND)
    entry = lists + (tile * 2 + KIND) * width
    following = tl.load(entry)
    for j in range(0, count):
        start = following * KEY_TILE
        following = tl.load(entry + j + 1, mask=j + 1 < count, other=0)
        k0, k1 = load_rows(k, start, stride_k, keys, KEY_TILE, FIRST, SECOND, KIND == PARTIAL)
        v0, v1 = load_rows(v, start, stride_v, keys, KEY_TILE, FIRST, SECOND, KIND == PARTIAL)
        score = tl.zeros([ROW_TILE, KEY_TILE], tl.float32)
        if KIND == PARTIAL:
            score = tl.where(
                sees(start + column[None, :], a0[:, None], a1[:, None], b0[:, None], b1[:, None]), score, float("-inf")
            )
        weight = tl.exp2(inner_products(score, q0, q1, k0, k1, SECOND) * log_scale - row_lse[:, None])
        change = inner_products(tl.zeros([ROW_TILE, KEY_TILE], tl.float32), grad0, grad1, v0, v1, SECOND)
        to_score = (weight * (change - row_delta[:, None])).to(k0.dtype)
        dq0 = tl.dot(to_score, k0, dq0, input_precision="ieee")
        if SECOND > 0:
            dq1 = tl.dot(to_score, k1, dq1, input_precision="ieee")
    return dq0, dq1


@triton.jit(do_not_specialize=["rows", "keys", "width"])
def query_kernel(
    q, k, v, grad, lse, delta, grad_q, intervals, order, counts, lists, rows, keys, width, scale,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head, stride_grad, stride_grad_head,
    stride_grad_q, stride_grad_q_head,
    GROUP: tl.constexpr, ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Grid (query heads, tiles of rows).  Writes grad_q, each number by one program in one order."""
    head = tl.program_id(0).to(tl.int64)
    tile = tl.load(order + tl.program_id(1))
    start = tile * ROW_TILE
    row = start + tl.arange(0, ROW_TILE)
    q0, q1 = load_rows(q + head * stride_q_head, start, stride_q, rows, ROW_TILE, FIRST, SECOND, True)
    grad0, grad1 = load_rows(grad + head * stride_grad_head, start, stride_grad, rows, ROW_TILE, FIRST, SECOND, True)
    row_lse = tl.load(lse + head * rows + row, mask=row < rows, other=0.0)
    row_delta = tl.load(delta + head * rows + row, mask=row < rows, other=0.0)
    k += head // GROUP * stride_k_head
    v += head // GROUP * stride_v_head
    dq0 = tl.zeros([ROW_TILE, FIRST], tl.float32)
    dq1 = dq0
    if SECOND > 0:
        dq1 = tl.zeros([ROW_TILE, SECOND], tl.float32)
    dq0, dq1 = _query_walk(
        dq0, dq1, q0, q1, grad0, grad1, row_lse, row_delta, k, v, intervals, counts, lists, tile, rows, keys, width,
        stride_k, stride_v, scale * LOG2E,
        ROW_TILE, KEY_TILE, FIRST, SECOND, FULL,
    )  # fmt: skip
    dq0, dq1 = _query_walk(
        dq0, dq1, q0, q1, grad0, grad1, row_lse, row_delta, k, v, intervals, counts, lists, tile, rows, keys, width,
        stride_k, stride_v, scale * LOG2E,
        ROW_TILE, KEY_TILE, FIRST, SECOND, PARTIAL,
    )  # fmt: skip
    store_rows(
        grad_q + head * stride_grad_q_head,
        start,
        stride_grad_q,
        rows,
        dq0 * scale,
        dq1 * scale,
        ROW_TILE,
        FIRST,
        SECOND,
    )
