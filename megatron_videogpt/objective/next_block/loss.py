"""Cross entropy over a vocabulary that tensor parallel ranks share, a few rows at a time: logits of all rows never
exist, forward or backward.

The forward pass takes the gradient along, while a chunk's logits are there: a backward pass that made them again would
take 1.6 times as long (1264 rows, 64,000 words, width 1536, one core; this takes 0.96 times what logits of all rows do,
which are 324 MB).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20
"""Most that the logits of a chunk of rows take, in float32."""


class Part(NamedTuple):
    """Which words of a vocabulary a rank has: `words` from `first` on, and the process group of all that have some
    (None: this rank has all).
    """

    first: int
    words: int
    group: Any = None


class Scored(NamedTuple):
    """What rows came to.

    total: of nll * weight, float32 ``[]``, with its graph; nll: cross entropy of each row, float32 ``[n]``; above:
    words that the row finds likelier than its target, float32 ``[n]``.
    """

    total: Tensor
    nll: Tensor
    above: Tensor


def cross_entropy(rows: Tensor, words: Tensor, target: Tensor, weight: Tensor, part: Part) -> Scored:
    """rows ``[n, D]``, words ``[at least part.words, D]``, target int64 ``[n]``, weight float32 ``[n]``.

    The gradient of rows is this rank's part of a sum over the group, as that of a head with `Ends.split_head` is.
    """
    learns = torch.is_grad_enabled() and (rows.requires_grad or words.requires_grad)
    return Scored(*_CrossEntropy.apply(rows, words, target, weight, part, learns))


def chunk_rows(rows: int, words: int) -> int:
    """Rows of a chunk: all chunks but the last are equal, and none has logits above `CHUNK_BYTES`."""
    most = max(1, CHUNK_BYTES // (4 * words))
    return max(1, -(-rows // -(-rows // most))) if rows else 1


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, words: Tensor, target: Tensor, weight: Tensor, part: Part, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll, above = (torch.empty(len(rows), dtype=torch.float32, device=rows.device) for _ in range(2))
        own = words[: part.words]
        if learns:
            # Chunks add up in float32, whatever the weights are in.
            of_rows, of_words = torch.empty_like(rows), torch.zeros_like(words, dtype=torch.float32)
        size = chunk_rows(len(rows), part.words)
        for start in range(0, len(rows), size):
            here = slice(start, start + size)
            logits = (rows[here] @ own.T).float()
            gradient, nll[here], above[here] = _probabilities(logits, target[here], weight[here], part)
            if learns:
                gradient = gradient.to(words.dtype)
                of_rows[here] = gradient @ own
                _add_product(of_words[: part.words], gradient.T, rows[here])
        ctx.gradients = (of_rows, of_words) if learns else None
        ctx.dtype = words.dtype
        ctx.mark_non_differentiable(nll, above)
        return (nll * weight).sum(), nll, above

    @staticmethod
    def backward(ctx: Any, total: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_words = ctx.gradients
        # They are of this pass alone, and as large as the weights: scaled in place, and let go.
        ctx.gradients = None
        return of_rows.mul_(total), of_words.mul_(total).to(ctx.dtype), None, None, None, None


def _probabilities(logits: Tensor, target: Tensor, weight: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the weighted sum by the logits, in their place; nll; above) of a chunk ``[c, part.words]``."""
    local = target - part.first
    here = (local >= 0) & (local < part.words)
    local = local.clamp(0, part.words - 1)[:, None]
    peaks = torch.stack([logits.amax(1), logits.gather(1, local)[:, 0].masked_fill(~here, -torch.inf)])
    _reduce(peaks, torch.distributed.ReduceOp.MAX, part)
    largest, wanted = peaks
    above = (logits > wanted[:, None]).sum(1)
    logits.sub_(largest[:, None]).exp_()
    sums = torch.stack([logits.sum(1), above.float()])
    _reduce(sums, torch.distributed.ReduceOp.SUM, part)
    logits.mul_((weight / sums[0])[:, None])
    logits.scatter_add_(1, local, -(weight * here)[:, None])
    return logits, largest + sums[0].log() - wanted, sums[1]


def _reduce(values: Tensor, how: Any, part: Part) -> None:
    if part.group is not None:
        torch.distributed.all_reduce(values, op=how, group=part.group)


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """``total += first @ second``; total is float32."""
    if second.dtype == torch.float32:
        total.addmm_(first, second)
    else:
        total.add_(first @ second)
