"""What rounding may do to attention: an allowance that follows from the numbers' format and the inputs, so that it
holds on every processor.

What rounding happens to do on one processor is no limit for another: a library that adds in another order, or with
fused multiply-adds, may be several times worse and just as right.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEVIATIONS = 4.0
"""How many times the deviation of all errors together is allowed.  Sums take the largest error of a rounding for its
deviation, which is 2.4 times smaller.
"""


def allowances(inputs: list[Tensor], mask: Tensor, scale: float, dtype: torch.dtype) -> list[float]:
    """Errors that rounding explains in the output and the gradients of q, k and v, as fractions of each tensor's
    largest exact value (at least 0.1).

    Variances of independent rounding errors, followed through the computation to first order.  Each rounding is off by
    at most u (the unit roundoff of `dtype`) or w (that of the arithmetic: float32 for 16-bit types) times the number.
    A sum of n products rounds n products and n partial sums; partial sums that wander to the sum s of n terms of
    variance t (a Brownian bridge) have squares that add up to n s^2 / 3 + n^2 t / 6.

    Args:
        inputs: q ``[Lq, H, d]``, k and v ``[Lk, Hkv, d]`` and a gradient of the output ``[Lq, H, d]``, float64 on the
            CPU.
        mask: bool ``[Lq, Lk]``, which pairs attend.
        dtype: of the computation whose errors are allowed.
    """
    u, w = (torch.finfo(kind).eps / 2 for kind in (dtype, torch.promote_types(dtype, torch.float32)))
    group, keys, rows = inputs[0].shape[1] // inputs[1].shape[1], mask.sum(1)[:, None], mask.sum(0)[:, None]
    q, k, v, grad = (x.transpose(0, 1) for x in inputs)
    k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))

    def product(a: Tensor, variance: Tensor | float, b: Tensor, terms: Tensor | int) -> tuple[Tensor, Tensor]:
        """(a b, its variance) for an `a` that has a variance; terms: of each sum that are not zero."""
        exact, squares = a @ b, a.square() @ b.square()
        inherited = variance @ b.square() if isinstance(variance, Tensor) else 0.0
        return exact, inherited + w * w * (terms / 3 * exact.square() + (terms / 6 + 1) * squares)

    def stored(x: Tensor) -> Tensor:
        """Variance of a number that is rounded to `dtype`, where that changes it: with one key, weights are 1 and the
        output is a value of v.

        Relative errors are even between -u/m and u/m for a mantissa m between 1 and 2: u^2 / 3 times 1/2, the mean of
        1/m^2.
        """
        return torch.where(x == x.to(dtype), 0.0, (u * x).square() / 6)

    def gradient(parts: Tensor, variance: Tensor, heads: int = 1) -> float:
        """The allowance of a sum over the query heads of a key-value head, stored, and its parts before: u at most
        each.
        """
        exact, stores, variance = (x.unflatten(0, (-1, heads)).sum(1) for x in (parts, u * parts.abs(), variance))
        return largest(DEVIATIONS * variance.sqrt() + stores + u * exact.abs(), exact)

    scores, of_scores = product(scale * q, 0.0, k.mT, q.shape[-1])
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    # The absolute error of a score (scaled, and less the row's largest) is the relative one of its exponential, whose
    # own is some w.  Divided by the sum of the row, the error e_j of a weight p_j becomes e_j - sum of p_i e_i:
    # nothing, where one weight is 1.
    relative = of_scores + (2 * w * scores).square() + (2 * w) ** 2
    of_sum = (weights.square() * relative).sum(-1, keepdim=True)
    out, of_out = product(
        weights, weights.square() * ((1 - 2 * weights) * relative + of_sum) + stored(weights), v, keys
    )
    # The backward pass computes scores again, perhaps in another order, and subtracts the logarithm of the sum, itself
    # a number of the scores' size.
    of_log = (w * scores.masked_fill(~mask, float("-inf")).logsumexp(-1, keepdim=True)).square()
    of_weights = weights.square() * (relative + of_sum + of_log) + stored(weights)

    # The gradient of a score is its weight times (slope - inner); kernels compute inner from the output as it was
    # stored.
    slope, of_slope = product(grad, 0.0, v.mT, q.shape[-1])
    inner, of_inner = (grad * out).sum(-1, keepdim=True), (grad.square() * (of_out + stored(out))).sum(-1, keepdim=True)
    to_scores = scale * weights * (slope - inner)
    of_to_scores = scale**2 * (
        of_weights * (slope - inner).square() + weights.square() * (of_slope + of_inner)
    ) + stored(to_scores)
    return [
        largest(DEVIATIONS * of_out.sqrt() + u * out.abs(), out),
        gradient(*product(to_scores, of_to_scores, k, keys)),
        gradient(*product(to_scores.mT, of_to_scores.mT, q, rows), group),
        gradient(*product(weights.mT, of_weights.mT, grad, rows), group),
    ]


def largest(errors: Tensor, exact: Tensor) -> float:
    """The largest error as a fraction of the largest exact value, but at least of 0.1: an exact zero may be made of
    terms of the inputs' size, which is 1.
    """
    return float(errors.max() / exact.abs().max().clamp(min=0.1))
