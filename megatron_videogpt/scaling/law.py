"""A scaling law, ``L = E + sum of factor / x^exponent`` over its inputs, in numbers as people write them; where compute
is best spent under one.

The form in parameters N and tokens D: Hoffmann et al. 2022 (arXiv 2203.15556), approach 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LETTERS = {"N": ("A", "alpha"), "D": ("B", "beta"), "S": ("B", "beta"), "b": ("C", "gamma")}
"""Input -> what its factor and its exponent are called."""

FLOPS = 6.0
"""FLOPs of training per parameter and token by the usual convention, C = 6 N D: attention over pairs does not count."""


@dataclass(frozen=True)
class Law:
    """inputs: their letters, of `LETTERS`; floor: E, the loss that no size reaches; factors, exponents: in the order of
    the inputs.
    """

    inputs: tuple[str, ...]
    floor: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]

    def loss(self, inputs: np.ndarray) -> np.ndarray:
        """Losses float64 ``[n]`` at inputs ``[n, K]``."""
        return self.floor + (np.array(self.factors) * inputs ** -np.array(self.exponents)).sum(-1)

    @property
    def numbers(self) -> dict[str, float]:
        """By name: E, A, B, alpha, beta, ... as `LETTERS` has them."""
        letters = [LETTERS[name] for name in self.inputs]
        factors = {factor: value for (factor, _), value in zip(letters, self.factors)}
        exponents = {exponent: value for (_, exponent), value in zip(letters, self.exponents)}
        return {"E": self.floor, **factors, **exponents}


@dataclass(frozen=True)
class Frontier:
    """Where compute is best spent, float64 ``[..., n]`` all: compute in FLOPs, parameters, tokens, loss there."""

    compute: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


def size_exponent(alpha: Any, beta: Any) -> Any:
    """a of ``N = G (C / flops)^a``, the best size for a compute; that of the tokens is 1 - a.  Numbers or arrays."""
    return beta / (alpha + beta)


def frontier(numbers: dict[str, np.ndarray], compute: np.ndarray, flops: float = FLOPS) -> Frontier:
    """The minimum of a law in N and D along C = flops N D, in closed form (Hoffmann et al. 2022, eq. 4).

    Args:
        numbers: E, A, B, alpha, beta: float64 ``[...]``, of one law or of many.
        compute: FLOPs ``[n]``.
        flops: per parameter and token.
    """
    floor, a_factor, b_factor, alpha, beta = (
        np.asarray(numbers[name])[..., None] for name in ("E", "A", "B", "alpha", "beta")
    )
    share = size_exponent(alpha, beta)
    log_scale = (np.log(alpha * a_factor) - np.log(beta * b_factor)) / (alpha + beta)
    log_product = np.log(compute / flops)
    size, tokens = np.exp(log_scale + share * log_product), np.exp((1 - share) * log_product - log_scale)
    loss = floor + a_factor * size**-alpha + b_factor * tokens**-beta
    return Frontier(np.broadcast_to(compute, size.shape), size, tokens, loss)
