"""Forward kernel of interval attention in Triton, and what the backward kernels (`triton_backward_kernels`) share with
it.

FlashAttention-2 (Dao 2023) over tile lists: a program walks the tiles that its own tile attends in full without any
mask code, then those that it attends in part.  A head dimension that is no power of two is two chunks of FIRST + SECOND
columns (96 as 64 + 32); SECOND is 0 where one chunk does, and the second chunk's variables then stand unused.  Softmax
is in base 2.

Walks: order ``[R]`` gives the tile of each program, counts ``[R, 2]`` and lists ``[R, 2, width]`` the tiles of the
other side, full ones first.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FULL = tl.constexpr(0)
PARTIAL = tl.constexpr(1)


@triton.jit
def load_rows(
    base, start, stride, limit, ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, BOUNDED: tl.constexpr
):
    """ROWS rows from `start` as two chunks of columns; BOUNDED: rows from `limit` on are zero."""
    row = tl.arange(0, ROWS)
    # Tiles may start beyond 2^31 numbers; within a tile 32 bits do.
    place = base + start.to(tl.int64) * stride + row[:, None] * stride
    inside = (start + row < limit)[:, None]
    if BOUNDED:
        x0 = tl.load(place + tl.arange(0, FIRST)[None, :], mask=inside, other=0.0)
    else:
        x0 = tl.load(place + tl.arange(0, FIRST)[None, :])
    x1 = x0
    if SECOND > 0:
        if BOUNDED:
            x1 = tl.load(place + FIRST + tl.arange(0, SECOND)[None, :], mask=inside, other=0.0)
        else:
            x1 = tl.load(place + FIRST + tl.arange(0, SECOND)[None, :])
    return x0, x1


@triton.jit
def store_rows(base, start, stride, limit, x0, x1, ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Two chunks of columns to the rows from `start` that are below `limit`."""
    row = tl.arange(0, ROWS)
    place = base + start.to(tl.int64) * stride + row[:, None] * stride
    inside = (start + row < limit)[:, None]
    tl.store(place + tl.arange(0, FIRST)[None, :], x0.to(base.dtype.element_ty), mask=inside)
    if SECOND > 0:
        tl.store(place + FIRST + tl.arange(0, SECOND)[None, :], x1.to(base.dtype.element_ty), mask=inside)


@triton.jit
def inner_products(start, a0, a1, b0, b1, SECOND: tl.constexpr):
    """start + a b^T over both chunks, in float32."""
    total = tl.dot(a0, tl.trans(b0), start, input_precision="ieee")
    if SECOND > 0:
        total = tl.dot(a1, tl.trans(b1), total, input_precision="ieee")
    return total


@triton.jit
def load_spans(intervals, row, rows):
    """The two key intervals of each row, empty from `rows` on; intervals ``[4, rows]``."""
    inside = row < rows
    a0 = tl.load(intervals + row, mask=inside, other=0)
    a1 = tl.load(intervals + rows + row, mask=inside, other=0)
    b0 = tl.load(intervals + 2 * rows + row, mask=inside, other=0)
    b1 = tl.load(intervals + 3 * rows + row, mask=inside, other=0)
    return a0, a1, b0, b1


@triton.jit
def sees(key, a0, a1, b0, b1):
    return ((key >= a0) & (key < a1)) | ((key >= b0) & (key < b1))


@triton.jit
def _forward_walk(
    acc0, acc1, top, total, q0, q1, k, v, intervals, counts, lists, tile, rows, keys, width, stride_k, stride_v,
    log_scale,
    ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Online softmax over the full or the partial tiles of keys: (unscaled output in two chunks, largest score, sum of
    weights).
    """
    row = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    column = tl.arange(0, KEY_TILE)
    if KIND == PARTIAL:
        a0, a1, b0, b1 = load_spans(intervals, row, rows)
    count = tl.load(counts + tile * 2 + KIND)
    entry = lists + (tile * 2 + KIND) * width
    following = tl.load(entry)
    for j in range(0, count):
        start = following * KEY_TILE
        # The next tile's number is read one iteration ahead, so that the loads of its keys can be issued early.
        following = tl.load(entry + j + 1, mask=j + 1 < count, other=0)
        k0, k1 = load_rows(k, start, stride_k, keys, KEY_TILE, FIRST, SECOND, KIND == PARTIAL)
        v0, v1 = load_rows(v, start, stride_v, keys, KEY_TILE, FIRST, SECOND, KIND == PARTIAL)
        score = inner_products(tl.zeros([ROW_TILE, KEY_TILE], tl.float32), q0, q1, k0, k1, SECOND)
        if KIND == PARTIAL:
            score = tl.where(
                sees(start + column[None, :], a0[:, None], a1[:, None], b0[:, None], b1[:, None]), score, float("-inf")
            )
        # `top` starts finite, so that a row that sees no key of this tile has weights exp2(-inf) = 0.
        higher = tl.maximum(top, tl.max(score, 1) * log_scale)
        weight = tl.exp2(score * log_scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        weight = weight.to(v0.dtype)
        acc0 = tl.dot(weight, v0, acc0 * shrink[:, None], input_precision="ieee")
        if SECOND > 0:
            acc1 = tl.dot(weight, v1, acc1 * shrink[:, None], input_precision="ieee")
        top = higher
    return acc0, acc1, top, total


@triton.jit(do_not_specialize=["rows", "keys", "width"])
def forward_kernel(
    q, k, v, out, lse, intervals, order, counts, lists, rows, keys, width, scale,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head, stride_out, stride_out_head,
    GROUP: tl.constexpr, ROW_TILE: tl.constexpr, KEY_TILE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Grid (query heads, tiles of rows).  Writes out in q's dtype and lse ``[H, rows]`` float32, the log2 of the sum of
    2^score.

    GROUP: query heads that share a key-value head.  scale: positive.
    """
    # Heads run first: they walk the same tiles at the same time, longest first over all heads.
    head = tl.program_id(0).to(tl.int64)
    tile = tl.load(order + tl.program_id(1))
    start = tile * ROW_TILE
    log_scale = scale * LOG2E
    q0, q1 = load_rows(q + head * stride_q_head, start, stride_q, rows, ROW_TILE, FIRST, SECOND, True)
    k += head // GROUP * stride_k_head
    v += head // GROUP * stride_v_head
    acc0 = tl.zeros([ROW_TILE, FIRST], tl.float32)
    acc1 = acc0
    if SECOND > 0:
        acc1 = tl.zeros([ROW_TILE, SECOND], tl.float32)
    top = tl.full([ROW_TILE], -1e30, tl.float32)
    total = tl.zeros([ROW_TILE], tl.float32)
    acc0, acc1, top, total = _forward_walk(
        acc0, acc1, top, total, q0, q1, k, v, intervals, counts, lists, tile, rows, keys, width, stride_k, stride_v,
        log_scale,
        ROW_TILE, KEY_TILE, FIRST, SECOND, FULL,
    )  # fmt: skip
    acc0, acc1, top, total = _forward_walk(
        acc0, acc1, top, total, q0, q1, k, v, intervals, counts, lists, tile, rows, keys, width, stride_k, stride_v,
        log_scale,
        ROW_TILE, KEY_TILE, FIRST, SECOND, PARTIAL,
    )  # fmt: skip
    # Rows from `rows` on have no key; they are computed and not written.
    total = tl.where(total > 0.0, total, 1.0)
    share = 1.0 / total[:, None]
    acc0 = acc0 * share
    if SECOND > 0:
        acc1 = acc1 * share
    store_rows(out + head * stride_out_head, start, stride_out, rows, acc0, acc1, ROW_TILE, FIRST, SECOND)
    row = start + tl.arange(0, ROW_TILE)
    tl.store(lse + head * rows + row, top + tl.log2(total), mask=row < rows)
