"""Triton kernels of RMSNorm, SwiGLU and of cutting a joint projection into rotated queries, keys and values;
`fused_triton` launches them.

All arithmetic is float32, whatever the tensors are.  A program works on one row, so no argument depends on how many
rows there are (but the backward of RMSNorm's, which does not specialise on it): nothing is compiled again for another
row length.  Offsets of rows are int64: a row of 131,072 tokens with 16,384 channels does not fit 32 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(x, weight, y, rstd, x_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x ``[rows, WIDTH]`` -> y, and the reciprocal of each row's root mean square; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    tl.store(rstd + row, scale)
    # Rounded before the weight, as the plain path does.
    normed = (values * scale).to(y.dtype.element_ty).to(tl.float32)
    tl.store(
        y + row * WIDTH + columns,
        normed * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32),
        mask=inside,
    )


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward_kernel(
    grad, x, weight, rstd, grad_x, partial, rows, grad_stride, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of x, and of the weight over the rows ``p, p + P, ...`` of program p of P: partial ``[P, WIDTH]``
    float32.
    """
    first, step = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    row = first.to(tl.int64)
    for _ in range(first, rows, step):
        to_output = tl.load(grad + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        normed = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32) * scale
        total += to_output * normed.to(x.dtype.element_ty).to(tl.float32)
        to_normed = to_output * factor
        inner = tl.sum(to_normed * normed, axis=0) / WIDTH
        tl.store(grad_x + row * WIDTH + columns, (to_normed - normed * inner) * scale, mask=inside)
        row += step
    tl.store(partial + first.to(tl.int64) * WIDTH + columns, total, mask=inside)


@triton.jit
def swiglu_kernel(x, y, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x ``[rows, 2 * WIDTH]`` -> y ``[rows, WIDTH]``, silu of the first half times the second; one program a row and
    block of columns.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_backward_kernel(grad, x, grad_x, grad_stride, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of both halves, from x alone."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    to_output = tl.load(grad + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    tl.store(grad_x + row * 2 * WIDTH + columns, to_output * up * share * (1 + gate * (1 - share)), mask=inside)
    tl.store(grad_x + row * 2 * WIDTH + WIDTH + columns, to_output * gate * share, mask=inside)


@triton.jit
def _turn(left, right, cos, sin):
    """Rotation of the pairs (left, right)."""
    return left * cos - right * sin, right * cos + left * sin


@triton.jit
def _heads(
    first,
    GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """Of a block of heads in the joint projection, each group's queries, then its key, then its value: (which are
    queries, keys, values, where they lie in the joint projection, among queries, among keys or values), as columns; the
    last four of the left half.
    """
    head = first + tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    group, slot = head // SLOTS, head % SLOTS
    inside = (head < GROUPS * SLOTS) & (column < HALF)
    query, key, value = inside & (slot < SLOTS - 2), inside & (slot == SLOTS - 2), inside & (slot == SLOTS - 1)
    joint, own, shared = (
        head * 2 * HALF + column,
        (group * (SLOTS - 2) + slot) * 2 * HALF + column,
        group * 2 * HALF + column,
    )
    return query, key, value, joint, own, shared


@triton.jit
def split_rotary_kernel(
    joint,
    angles,
    place,
    q,
    k,
    v,
    joint_stride,
    angle_stride,
    GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    HALF: tl.constexpr,
    CHOSEN: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """joint ``[rows, GROUPS * SLOTS * 2 * HALF]`` -> rotated q and k, and v; with CHOSEN, q holds only rows with place
    >= 0, there.  One program a row.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(place + row).to(tl.int64) if CHOSEN else row
    column = tl.arange(0, HALF_BLOCK)
    angle = tl.load(angles + row * angle_stride + column, mask=column < HALF, other=0.0)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    for first in range(0, GROUPS * SLOTS, HEADS_BLOCK):
        query, key, value, where, own, shared = _heads(first, GROUPS, SLOTS, HALF, HEADS_BLOCK, HALF_BLOCK)
        source = joint + row * joint_stride + where
        left = tl.load(source, mask=query | key | value, other=0.0)
        right = tl.load(source + HALF, mask=query | key | value, other=0.0)
        to_v = v + row * GROUPS * 2 * HALF + shared
        tl.store(to_v, left, mask=value)
        tl.store(to_v + HALF, right, mask=value)
        left, right = _turn(left.to(tl.float32), right.to(tl.float32), cos, sin)
        to_k = k + row * GROUPS * 2 * HALF + shared
        tl.store(to_k, left, mask=key)
        tl.store(to_k + HALF, right, mask=key)
        to_q = q + target * GROUPS * (SLOTS - 2) * 2 * HALF + own
        tl.store(to_q, left, mask=query & (target >= 0))
        tl.store(to_q + HALF, right, mask=query & (target >= 0))


@triton.jit
def split_rotary_backward_kernel(
    grad_q,
    grad_k,
    grad_v,
    angles,
    place,
    grad_joint,
    angle_stride,
    GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    HALF: tl.constexpr,
    CHOSEN: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """The transpose of `split_rotary_kernel`: the joint gradient of a row, rotated back; queries that were not chosen
    get zeros.
    """
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(place + row).to(tl.int64) if CHOSEN else row
    column = tl.arange(0, HALF_BLOCK)
    angle = tl.load(angles + row * angle_stride + column, mask=column < HALF, other=0.0)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    for first in range(0, GROUPS * SLOTS, HEADS_BLOCK):
        query, key, value, where, own, shared = _heads(first, GROUPS, SLOTS, HALF, HEADS_BLOCK, HALF_BLOCK)
        from_q = grad_q + source * GROUPS * (SLOTS - 2) * 2 * HALF + own
        from_k = grad_k + row * GROUPS * 2 * HALF + shared
        from_v = grad_v + row * GROUPS * 2 * HALF + shared
        chosen = query & (source >= 0)
        # Each element is read from one of the three; the others give zero.
        left = tl.load(from_q, mask=chosen, other=0.0) + tl.load(from_k, mask=key, other=0.0)
        right = tl.load(from_q + HALF, mask=chosen, other=0.0) + tl.load(from_k + HALF, mask=key, other=0.0)
        left, right = _turn(left.to(tl.float32), right.to(tl.float32), cos, -sin)
        left += tl.load(from_v, mask=value, other=0.0).to(tl.float32)
        right += tl.load(from_v + HALF, mask=value, other=0.0).to(tl.float32)
        to_joint = grad_joint + row * GROUPS * SLOTS * 2 * HALF + where
        tl.store(to_joint, left, mask=query | key | value)
        tl.store(to_joint + HALF, right, mask=query | key | value)
