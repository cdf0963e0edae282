"""Scaling laws: planted ones come back, intervals cover as often as they say, published points give their numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from megatron_videogpt.scaling.analysis import Settings, analyse
from megatron_videogpt.scaling.fit import METHODS
from megatron_videogpt.scaling.intervals import bootstrap, percentiles, profile
from megatron_videogpt.scaling.isoflop import groups
from megatron_videogpt.scaling.law import Law, frontier
from megatron_videogpt.scaling.points import SIZES, STEPS, Point, inputs_of, losses_of, select
from megatron_videogpt.scaling.solve import HUBER, SQUARES, Space, refit
from megatron_videogpt.scaling.table import read_table

PUBLISHED = "MVG_CHINCHILLA_POINTS"
"""Path of the points of arXiv 2404.10102: a CSV file with the columns N, C, loss."""


def grid(ratios: tuple[float, ...], sizes: int = 5) -> np.ndarray:
    """N and D of a ladder with these tokens per parameter, ``[n, 2]``."""
    parameters = np.geomspace(1e6, 1e8, sizes)
    return np.array([(size, size * ratio) for size in parameters for ratio in ratios])


def planted(inputs: np.ndarray, alpha: float, beta: float, floor: float = 0.7) -> Law:
    """A law whose terms are 0.5 and 0.4 at the smallest size and the fewest tokens."""
    factors = 0.5 * inputs[:, 0].min() ** alpha, 0.4 * inputs[:, 1].min() ** beta
    return Law(SIZES, floor, factors, (alpha, beta))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("alpha", "beta", "ratios"),
    [
        (0.34, 0.34, (5.0, 10.0, 20.0, 40.0)),
        (0.34, 0.28, (0.5, 1.0, 2.0)),  # far from what is best, on one side
        (0.6, 0.15, (10.0, 20.0, 160.0)),
        (0.12, 0.9, (200.0, 400.0, 900.0)),
    ],
)
def test_a_planted_law_comes_back(method: str, alpha: float, beta: float, ratios: tuple[float, ...]) -> None:
    inputs = grid(ratios)
    law = planted(inputs, alpha, beta)
    found = METHODS[method](SIZES, inputs, law.loss(inputs)).law
    for name, value in law.numbers.items():
        assert found.numbers[name] == pytest.approx(value, rel=5e-3 if name in "AB" else 1e-4), name


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_law_in_steps_and_batch_comes_back(method: str) -> None:
    inputs = np.array([(n, s, b) for n in (1e6, 1e7, 1e8) for s in (1e3, 4e3, 2e4) for b in (8.0, 32.0, 128.0)])
    law = Law(STEPS, 1.2, (50.0, 20.0, 0.8), (0.32, 0.41, 0.7))
    found = METHODS[method](STEPS, inputs, law.loss(inputs)).law
    for name, value in law.numbers.items():
        assert found.numbers[name] == pytest.approx(value, rel=5e-3), name


def test_an_outlier_moves_huber_less() -> None:
    inputs = grid((5.0, 10.0, 20.0, 40.0))
    law = planted(inputs, 0.34, 0.28)
    losses = law.loss(inputs)
    losses[7] *= 1.1
    errors = [abs(fit(SIZES, inputs, losses).law.exponents[0] / 0.34 - 1) for fit in METHODS.values()]
    assert errors[0] < 0.005 < 0.05 < errors[1]


def test_the_frontier_is_the_minimum_along_equal_compute() -> None:
    inputs = grid((5.0, 20.0))
    law = planted(inputs, 0.37, 0.25)
    numbers = {name: np.asarray(value) for name, value in law.numbers.items()}
    best = frontier(numbers, np.array([1e16, 1e19]))
    for compute, size, tokens, loss in zip(best.compute, best.parameters, best.tokens, best.loss):
        assert 6 * size * tokens == pytest.approx(compute)
        sizes = size * np.geomspace(0.5, 2, 2001)
        along = law.loss(np.stack([sizes, compute / 6 / sizes], 1))
        assert sizes[along.argmin()] == pytest.approx(size, rel=1e-3) and loss == pytest.approx(along.min(), rel=1e-7)


@pytest.mark.parametrize("measure", [HUBER, SQUARES], ids=["huber", "squares"])
def test_many_fits_at_once_are_those_one_by_one(measure: object) -> None:
    """Of points drawn anew, against L-BFGS on the points themselves."""
    inputs = grid((5.0, 10.0, 20.0, 40.0))
    random = np.random.default_rng(0)
    losses = planted(inputs, 0.34, 0.28).loss(inputs) * np.exp(0.004 * random.standard_normal(len(inputs)))
    method = METHODS["huber" if measure is HUBER else "projection"]
    fit = method(SIZES, inputs, losses)
    counts = random.multinomial(len(inputs), np.full(len(inputs), 1 / len(inputs)), 3).astype(float)
    thetas, _ = refit(fit.space, fit.measure, np.tile(fit.theta, (3, 1)), fit.measured, counts)
    for theta, count in zip(thetas, counts):
        drawn = np.repeat(np.arange(len(inputs)), count.astype(int))
        alone = method(SIZES, inputs[drawn], losses[drawn])
        assert fit.space.numbers(theta)["alpha"] == pytest.approx(alone.law.exponents[0], rel=2e-3)


def test_a_profile_is_that_of_each_value_fitted_anew() -> None:
    inputs = grid((5.0, 10.0, 20.0, 40.0))
    random = np.random.default_rng(1)
    losses = planted(inputs, 0.34, 0.28).loss(inputs) * np.exp(0.004 * random.standard_normal(len(inputs)))
    fit = METHODS["projection"](SIZES, inputs, losses)
    free = len(inputs) - 5
    limit = fit.objective * (1 + 4.543077 / free)  # F(1, 15) at 95 %
    space = Space.of(SIZES, inputs)
    for end in profile(fit, "alpha"):
        # The others by brute force: beta on a fine grid, E, A and B by least squares.
        sums = []
        for beta in np.linspace(0.05, 0.8, 1501):
            columns = np.exp(-np.array([0.0, end, beta]) * np.insert(space.logs, 0, 0.0, axis=1)) / losses[:, None]
            sums.append(0.5 * np.linalg.lstsq(columns, np.ones(len(losses)), rcond=None)[1][0])
        assert min(sums) == pytest.approx(limit, rel=2e-2)


def covered(names: tuple[str, ...], replicates: int = 0) -> dict[tuple[str, ...], float]:
    """How often, of 200 noisy repetitions, intervals hold a planted law, and a run beyond it.

    replicates: of the bootstrap; 0 for the profile.
    """
    inputs, far = grid((3.0, 6.0, 12.0, 24.0, 48.0, 96.0), sizes=8), np.array([[1e9, 2e10]])
    law = planted(inputs, 0.34, 0.28)
    random, hits = np.random.default_rng(0), dict[tuple[str, ...], list[bool]]()
    for _ in range(200):
        losses = law.loss(inputs) * np.exp(0.004 * random.standard_normal(len(inputs)))
        run = float(law.loss(far)[0]) * np.exp(0.004 * random.standard_normal())
        for method in METHODS if replicates else ("projection",):
            fit = METHODS[method](SIZES, inputs, losses)
            if replicates:
                drawn = bootstrap(fit, replicates, seed=0)
                found = {name: percentiles(drawn.numbers[name], 0.95) for name in names}
                low, high = percentiles(drawn.runs(far, 0)[:, 0], 0.95)
                hits.setdefault((method, "run"), []).append(low <= run <= high)
            else:
                found = {name: profile(fit, name) for name in names}
            for name, (low, high) in found.items():
                hits.setdefault((method, name), []).append(low <= law.numbers[name] <= high)
    return {key: float(np.mean(value)) for key, value in hits.items()}


def test_profile_intervals_cover_as_often_as_they_say() -> None:
    found = covered(("alpha", "beta"))
    assert len(found) == 2 and all(0.90 <= share <= 0.99 for share in found.values()), found


@pytest.mark.long
def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    found = covered(("E", "alpha", "beta"), replicates=200)
    assert len(found) == 8 and all(0.90 <= share <= 0.99 for share in found.values()), found


def test_published_points_give_published_numbers() -> None:
    """The 240 points of the replication of Chinchilla's law (Besiroglu et al. 2024, arXiv 2404.10102)."""
    if not os.environ.get(PUBLISHED):
        pytest.skip(f"{PUBLISHED} does not name the table of arXiv 2404.10102, which is not ours to ship")
    points = select(read_table(Path(os.environ[PUBLISHED])), drop_largest=5).fitted
    assert len(points) == 240
    fit = METHODS["huber"](SIZES, inputs_of(points, SIZES), losses_of(points))
    floor, alpha, beta = (fit.law.numbers[name] for name in ("E", "alpha", "beta"))
    assert fit.objective <= 1.0183e-3
    assert abs(alpha - 0.3473) <= 0.002 and abs(beta - 0.3672) <= 0.002 and abs(floor - 1.817) <= 0.003
    drawn = bootstrap(fit, 500, seed=0).numbers
    for name, published, ends in (("alpha", 0.3478, (0.317, 0.373)), ("beta", 0.3658, (0.331, 0.415))):
        interval = percentiles(drawn[name], 0.95)
        assert interval[0] < published < interval[1]
        assert interval == pytest.approx(ends, abs=0.008), name


def test_everything_together_predicts_what_was_held_out() -> None:
    inputs = grid((5.0, 10.0, 20.0, 40.0), sizes=6)
    law = planted(inputs, 0.34, 0.28)
    random = np.random.default_rng(3)
    points = [
        Point(
            f"run {n}",
            *row,
            float(law.loss(row)) * np.exp(0.003 * random.standard_normal()),
            levels={"loss_t0": law.loss(row) / 2},
        )
        for n, row in enumerate(inputs)
    ]
    result = analyse(select(points, hold_out=3), Settings(replicates=100))
    assert len(result.predictions) == 6
    assert all(one.inside and abs(one.error) < 0.02 and 0 < one.half_width < 0.04 for one in result.predictions)
    assert result.levels["loss_t0"].numbers["alpha"] == pytest.approx(0.34, rel=1e-4)
    assert result.levels["loss_t0"].numbers["E"] == pytest.approx(0.35, rel=1e-4)
    of_level = {one.point.name: one for one in result.level_predictions["loss_t0"]}
    assert set(of_level) == {one.point.name for one in result.predictions}
    for one in result.predictions:
        truth = float(law.loss(inputs[int(one.point.name.split()[1])])) / 2
        assert of_level[one.point.name].point.loss == truth
        assert of_level[one.point.name].loss == pytest.approx(truth, rel=1e-4)
    assert result.left_out == {"steps and batch": "not every point has N, S, b"}
    for method, estimate in result.estimates.items():
        low, high = estimate.bootstrap["a"]
        assert low < 0.28 / 0.62 < high, method


def test_runs_of_equal_compute_are_grouped_and_their_parabola_is_biased() -> None:
    """The vertex is off the true minimum even without noise where the exponents differ."""
    points = []
    law = Law(SIZES, 1.0, (400.0, 2000.0), (0.5, 0.25))
    for compute in (1e17, 1e18):
        size = float(frontier({k: np.asarray(v) for k, v in law.numbers.items()}, np.array([compute])).parameters[0])
        for times in (0.1, 0.3, 1.0, 3.0, 10.0):
            tokens = compute / 6 / (times * size)
            loss = float(law.loss(np.array([times * size, tokens])))
            points.append(Point(f"{compute:g} {times:g}", times * size, tokens, loss))
    found = groups(points)
    assert [len(group.points) for group in found] == [5, 5] and all(group.opens for group in found)
    assert all(abs(group.vertex / group.points[2].parameters - 1) > 0.05 for group in found)
