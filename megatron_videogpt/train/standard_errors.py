"""How sure a validation loss is: it is a mean over some held-out videos, and others would have given another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PREFIX = "se_"
"""Before the name of a number, that of its standard error."""


def means_with_errors(
    names: Sequence[str], sums: np.ndarray, counts: np.ndarray, videos: Sequence[object]
) -> dict[str, float]:
    """Mean of each of the names, then under `PREFIX` its standard error; what nothing counts to is left out, and the
    errors of what fewer than two videos count to.

    A mean is the ratio of two sums over videos, s and c, and its error that of a ratio (Cochran 1977, Sampling
    Techniques, section 6.4): ``sqrt(G / (G - 1) * sum((s_g - mean * c_g)^2)) / sum(c_g)`` over the G videos that count
    to it.  Samples of one video are one draw, whose frames and noise levels go together.  That noise levels are shared
    out evenly over samples makes the mean surer than this says.

    Args:
        sums, counts: ``[samples, names]``.
        videos: which video each sample shows.
    """
    of = np.unique([repr(video) for video in videos], return_inverse=True)[1]
    shape = (1 + of.max(initial=-1), len(names))
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, of, sums.astype(np.float64))
    np.add.at(count, of, counts.astype(np.float64))
    found, errors = {}, {}
    for name, s, c in zip(names, total.T, count.T):
        if not c.sum():
            continue
        found[name] = float(s.sum() / c.sum())
        several = int((c > 0).sum())
        if several > 1:
            squares = np.square(s - found[name] * c).sum() * several / (several - 1)
            errors[PREFIX + name] = float(np.sqrt(squares) / c.sum())
    return found | errors
