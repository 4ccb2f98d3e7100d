"""The fits recover the laws that made the numbers."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress, t

from papers.topk_scaling.scaling_fits import (
    JointLaw,
    PowerLaw,
    blocks,
    bootstrap,
    fit_joint_law,
    fit_power_law,
    fit_slope,
    held_out_residuals,
    learning_curve,
    percentile_interval,
    r_squared,
    relative_residuals,
    size_of_residuals,
)

PAPER = JointLaw(-0.50, 0.26, -0.017, -0.042, -1.32, -0.085)
X = np.geomspace(256, 8192, 8)
N, K = (grid.ravel() for grid in np.meshgrid(2.0 ** np.arange(8, 14), 2.0 ** np.arange(2, 8)))


def noise(size, count, seed=0):
    return np.exp(size * np.random.default_rng(seed).normal(size=count))


@pytest.mark.parametrize(
    "law", [PowerLaw(0.1, 2.0, 0.3), PowerLaw(0.3, 5.0, 1.0), PowerLaw(0.09, 0.056, 0.084)]
)
def test_a_power_law_with_a_floor_is_recovered(law):
    for scale in (1, 1e-12, 1e9):  # compute in FLOPs as much as in a share of something
        found = fit_power_law(X * scale, law(X))
        assert found.exponent == pytest.approx(law.exponent, rel=1e-4)
        assert found.floor == pytest.approx(law.floor, rel=1e-3)
        assert np.allclose(found(X * scale), law(X), rtol=1e-6)


def test_a_power_law_without_a_floor_is_recovered_exactly():
    law = PowerLaw(0.0, 2.0, 0.26)
    assert fit_power_law(X, law(X), floor=False) == pytest.approx(law, rel=1e-9, abs=1e-12)
    found = fit_power_law(X, law(X))
    assert found.floor == pytest.approx(0, abs=1e-5)
    assert found.exponent == pytest.approx(0.26, rel=1e-4)


def test_the_fit_of_noisy_points_is_that_of_scipy():
    y = PowerLaw(0.2, 3.0, 0.4)(X) * noise(0.01, len(X))
    found = fit_power_law(X, y)
    theirs, _ = curve_fit(lambda x, a, b, c: a + b * x**-c, X, y, [0.1, 2, 0.3], sigma=y)
    assert found == pytest.approx(tuple(theirs), rel=1e-3)


def test_a_loss_that_rises_has_a_negative_exponent():
    assert fit_power_law(X, X**0.1, floor=False).exponent == pytest.approx(-0.1)
    assert fit_power_law(X, X**0.1).exponent < 0


def test_the_joint_law_is_recovered():
    assert fit_joint_law(N, K, PAPER(N, K)) == pytest.approx(PAPER, rel=1e-4)


def test_the_joint_law_without_a_floor_is_recovered_exactly():
    law = JointLaw(0.3, 0.1, -0.1, -0.02, -np.inf, 0.0)
    found = fit_joint_law(N, K, law(N, K), floor=False)
    assert found[:4] == pytest.approx(law[:4], rel=1e-9)
    assert found[4:] == law[4:]
    assert np.allclose(found(N, K), law(N, K))


def test_the_joint_law_is_the_equation():
    n, k = np.array([1e5]), np.array([512.0])
    by_hand = np.exp(
        -0.5 + 0.26 * np.log(512) - 0.017 * np.log(1e5) - 0.042 * np.log(512) * np.log(1e5)
    ) + np.exp(-1.32 - 0.085 * np.log(512))
    assert PAPER(n, k)[0] == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.28, abs=0.005)  # what the paper's figure shows there


def test_a_start_gives_the_same_fit():
    loss = PAPER(N, K) * noise(0.01, len(N))
    found = fit_joint_law(N, K, loss)
    assert fit_joint_law(N, K, loss, start=found) == pytest.approx(found, rel=1e-3)


def test_only_a_floor_predicts_held_out_cells_of_a_law_that_has_one():
    law = JointLaw(1.0, 0.1, -0.3, -0.02, -1.6, -0.1)
    loss = law(N, K) * noise(0.003, len(N))
    cells = np.arange(len(N))

    def worst(floor):
        return size_of_residuals(
            held_out_residuals(lambda *c: fit_joint_law(*c, floor=floor), [N, K], loss, cells)
        )["max"]

    assert worst(True) < 0.02 < worst(False)


def test_intervals_of_the_bootstrap_hold_the_truth():
    loss = PAPER(N, K) * noise(0.002, len(N))
    law = fit_joint_law(N, K, loss)
    samples = bootstrap(lambda *c: fit_joint_law(*c, start=law), [N, K], loss, 100, 0)
    for place, truth in enumerate(PAPER):
        found = percentile_interval(samples[:, place])
        assert found["low"] < truth < found["high"], JointLaw._fields[place]


def test_the_bootstrap_is_the_same_for_the_same_seed():
    y = X**-0.2 * noise(0.1, len(X))
    one, same, other = (bootstrap(fit_power_law, [X], y, 5, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same, equal_nan=True)
    assert not np.array_equal(one, other, equal_nan=True)


def test_percentiles():
    assert percentile_interval(np.arange(101.0)) == pytest.approx({"low": 2.5, "high": 97.5})
    few_missing = np.append(np.arange(100.0), np.nan)
    assert np.isfinite(percentile_interval(few_missing)["low"])
    many_missing = np.append(np.arange(10.0), np.nan)
    assert np.isnan(percentile_interval(many_missing)["low"])
    assert np.isnan(percentile_interval(np.empty(0))["high"])


def test_slopes_are_those_of_a_regression():
    y = 3 * X**-0.5 * noise(0.1, len(X))
    found, line = fit_slope(X, y), linregress(np.log(X), np.log(y))
    half = t.ppf(0.975, len(X) - 2) * line.stderr
    assert found.value == pytest.approx(line.slope)
    assert (found.low, found.high) == pytest.approx((line.slope - half, line.slope + half))
    exact = fit_slope(X, 3 * X**-0.5)
    assert exact == pytest.approx((-0.5, -0.5, -0.5, 3))


def test_too_few_points_give_nan():
    two = X[:2]
    assert np.isnan(fit_power_law(two, two)).all()
    assert np.isfinite(fit_power_law(two, two, floor=False)).all()
    assert np.isnan(fit_power_law(X[:0], X[:0], floor=False)).all()
    assert np.isnan(fit_slope(np.ones(5), X[:5])).all()
    assert np.isnan(fit_slope(two, two).low)
    assert np.isnan(fit_joint_law(N[:3], K[:3], N[:3])).all()
    same_k = np.full(len(N), 4.0)
    assert np.isnan(fit_joint_law(N, same_k, N)).all()
    two_n = np.isin(N, np.unique(N)[:2])
    assert np.isnan(fit_joint_law(N[two_n], K[two_n], N[two_n])).all()
    assert np.isfinite(fit_joint_law(N[two_n], K[two_n], N[two_n], floor=False)[:4]).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_numbers_that_have_no_logarithm_are_refused(bad):
    y = np.append(X[:-1], bad)
    with pytest.raises(ValueError, match="positive, finite"):
        fit_power_law(X, y)
    with pytest.raises(ValueError, match="positive, finite"):
        fit_slope(y, X)
    with pytest.raises(ValueError, match="positive, finite"):
        fit_joint_law(X, X, y)


def test_residuals():
    found = relative_residuals(np.array([1.1, 0.9, 1.0]), np.ones(3))
    assert found == pytest.approx([0.1, -0.1, 0])
    assert size_of_residuals(found) == pytest.approx({"median": 0.1, "max": 0.1})
    assert np.isnan(size_of_residuals(np.array([0.1, np.nan]))["median"])
    assert np.isnan(size_of_residuals(np.empty(0))["max"])


def test_r_squared():
    y = np.exp([0.0, 1.0, 2.0])
    assert r_squared(y, y) == 1
    assert r_squared(np.full(3, np.e), y) == pytest.approx(0)
    assert r_squared(y[::-1].copy(), y) == pytest.approx(-3)
    assert np.isnan(r_squared(np.full(3, np.nan), y))
    assert np.isnan(r_squared(np.ones(3), np.ones(3)))
    assert np.isnan(r_squared(np.empty(0), np.empty(0)))


def test_a_held_out_point_does_not_move_its_own_prediction():
    y = X**-0.3
    outlier = y * np.where(np.arange(len(X)) == 3, 2.0, 1.0)
    found = held_out_residuals(
        lambda x, y: fit_power_law(x, y, floor=False), [X], outlier, np.arange(len(X))
    )
    assert found[3] == pytest.approx(-0.5)
    assert np.abs(np.delete(found, 3)).min() > 0.01


def test_blocks_are_runs_of_neighbours():
    assert blocks(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert blocks(2, 5).tolist() == [0, 2]
    assert blocks(0, 5).tolist() == []


def test_a_learning_curve_never_rises_and_keeps_the_mean():
    vectors = np.array([1.0, 2, 3, 4, 5])
    curve = learning_curve(vectors, np.array([0.9, 0.5, 0.6, 0.55, 0.3]))
    assert curve.nmse == pytest.approx([0.9, 0.55, 0.55, 0.55, 0.3])
    holed = learning_curve(vectors, np.array([0.9, np.nan, np.inf, 0.5, -1.0]))
    assert holed.vectors.tolist() == [1, 4]
    assert len(learning_curve(vectors, np.full(5, np.nan)).nmse) == 0


def test_a_learning_curve_is_linear_in_logarithms():
    vectors = np.geomspace(1e3, 1e6, 7)
    curve = learning_curve(vectors, 5 * vectors**-0.3)
    at = np.array([500.0, 12_345.0, 2e6])
    assert curve.at(at)[1] == pytest.approx(5 * 12_345**-0.3)
    assert np.isnan(curve.at(at)[[0, 2]]).all()
    assert curve.first_reaching(5 * 54_321**-0.3) == pytest.approx(54_321)
    assert np.isnan(curve.first_reaching(1e-9))
    assert np.isnan(curve.first_reaching(10.0))  # below it from the first record on
    empty = learning_curve(np.empty(0), np.empty(0))
    assert np.isnan(empty.at(at)).all()
    assert np.isnan(empty.first_reaching(1.0))


def test_a_floor_that_is_not_there_is_fitted_as_none():
    law = JointLaw(0.3, 0.1, -0.1, -0.01, -np.inf, 0.0)
    found = fit_joint_law(N, K, law(N, K))
    assert np.allclose(found(N, K), law(N, K), rtol=1e-4)
    assert (np.exp(found.zeta) * K**found.eta / law(N, K) < 0.02).all()
