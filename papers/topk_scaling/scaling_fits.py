"""Scaling laws: their fits, and how well they hold on what they were not fitted to.

Sections 3.1 and 3.2: the loss falls as a power law, of compute, of latents or of both latents and
k, down to an irreducible loss (a floor), which need not be there. So every law is fitted with and
without floor, and a floor is claimed only where it predicts held-out points better.

All fits weigh points by relative error. A fit to too few points is nan throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import isotonic_regression, least_squares, minimize_scalar, nnls
from scipy.stats import linregress, t

CONFIDENCE = 0.95
STEEPEST = 3.0
"""Greatest |exponent| of a power law that is looked for."""


class Law(Protocol):
    """A fitted law."""

    def __call__(self, *inputs: np.ndarray) -> Float[np.ndarray, " points"]:
        """Return the predictions at some inputs."""


class PowerLaw(NamedTuple):
    """y = floor + factor · x^−exponent."""

    floor: float
    factor: float
    exponent: float

    def __call__(self, *inputs: np.ndarray) -> Float[np.ndarray, " points"]:
        """Return y at some x."""
        (x,) = inputs
        return self.floor + self.factor * np.asarray(x, dtype=float) ** -self.exponent


class JointLaw(NamedTuple):
    """L(n, k) of section 3.2, equation 3; without floor, ζ is −∞ and η is 0.

    L = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k)
    """

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float

    def __call__(self, *inputs: np.ndarray) -> Float[np.ndarray, " points"]:
        """Return the loss at some n and k."""
        terms, floors = _joint_terms(*inputs)
        return np.exp(terms @ self[:4]) + np.exp(floors @ self[4:])


class Slope(NamedTuple):
    """A slope in log-log coordinates, with Student's interval; y = factor · x^value."""

    value: float
    low: float
    high: float
    factor: float


def _positive(*columns: np.ndarray) -> list[Float[np.ndarray, " points"]]:
    found = [np.asarray(column, dtype=float) for column in columns]
    if any(not (np.isfinite(column) & (column > 0)).all() for column in found):
        raise ValueError("a law is fitted to positive, finite numbers only")
    return found


def fit_slope(x: np.ndarray, y: np.ndarray) -> Slope:
    """Fit a line in log-log coordinates by least squares.

    nan for fewer than two distinct x; the interval is nan for fewer than three points. Raises
    ValueError for numbers that are not positive and finite.
    """
    x, y = _positive(x, y)
    if len(np.unique(x)) < 2:
        return Slope(np.nan, np.nan, np.nan, np.nan)
    line = linregress(np.log(x), np.log(y))
    half = np.nan
    if len(x) > 2:
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)) * float(line.stderr)
    value = float(line.slope)
    return Slope(value, value - half, value + half, float(np.exp(line.intercept)))


def fit_power_law(x: np.ndarray, y: np.ndarray, floor: bool = True) -> PowerLaw:
    """Fit y = a + b·x^−c with a, b ≥ 0, or with a = 0; the latter is a line in log-log coordinates.

    At every exponent the best a and b are those of non-negative least squares, so that one number
    is left to search. nan for fewer distinct x than parameters. Raises ValueError for numbers that
    are not positive and finite.
    """
    x, y = _positive(x, y)
    if len(np.unique(x)) < 2 + floor:
        return PowerLaw(np.nan, np.nan, np.nan)
    if not floor:
        line = fit_slope(x, y)
        return PowerLaw(0.0, line.factor, -line.value)
    unit = np.exp(np.log(x).mean())  # so that neither column is far larger than the other

    def solved(exponent: float) -> tuple[np.ndarray, float]:
        return nnls(np.stack([1 / y, (x / unit) ** -exponent / y], axis=1), np.ones(len(y)))

    grid = np.linspace(-STEEPEST, STEEPEST, 121)
    errors = [solved(exponent)[1] for exponent in grid]
    best = int(np.argmin(errors))
    near = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    exponent = float(
        minimize_scalar(
            lambda c: solved(c)[1], bounds=near, method="bounded", options={"xatol": 1e-10}
        ).x
    )
    (a, b), _ = solved(exponent)
    return PowerLaw(float(a), float(b * unit**exponent), exponent)


def _joint_terms(
    n: np.ndarray, k: np.ndarray
) -> tuple[Float[np.ndarray, "points 4"], Float[np.ndarray, "points 2"]]:
    """Return what α, β_k, β_n, γ multiply, and what ζ, η do."""
    log_n, log_k = np.log(np.asarray(n, dtype=float)), np.log(np.asarray(k, dtype=float))
    one = np.ones_like(log_n)
    return np.stack([one, log_k, log_n, log_k * log_n], axis=1), np.stack([one, log_k], axis=1)


FLOOR_STARTS = (0.3, 0.6, 0.9)
"""Shares of the least loss of every k at which the search for a floor starts."""


def fit_joint_law(
    n: np.ndarray,
    k: np.ndarray,
    loss: np.ndarray,
    floor: bool = True,
    start: JointLaw | None = None,
) -> JointLaw:
    """Fit L(n, k) by least squares of log L; without floor that is a linear problem.

    `start` spares the search from several beginnings. nan for fewer points than parameters, or too
    few distinct n or k to tell the parameters apart. Raises ValueError for numbers that are not
    positive and finite.
    """
    n, k, loss = _positive(n, k, loss)
    nothing = JointLaw(*[np.nan] * 6)
    terms, floors = _joint_terms(n, k)
    if len(loss) < 4 + 2 * floor or np.linalg.matrix_rank(terms) < 4:
        return nothing
    target = np.log(loss)
    if not floor:
        linear = np.linalg.lstsq(terms, target, rcond=None)[0]
        return JointLaw(*np.append(linear, [-np.inf, 0.0]).tolist())
    if len(np.unique(n)) < 3:
        return nothing

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.logaddexp(terms @ p[:4], floors @ p[4:]) - target

    def jacobian(p: np.ndarray) -> np.ndarray:
        power, base = terms @ p[:4], floors @ p[4:]
        share = np.exp(power - np.logaddexp(power, base))[:, None]
        return np.concatenate([terms * share, floors * (1 - share)], axis=1)

    if start is None:
        least = np.array([loss[k == one].min() for one in k])
        begin = []
        for part in FLOOR_STARTS:
            base = np.linalg.lstsq(floors, np.log(part * least), rcond=None)[0]
            above = np.maximum(loss - np.exp(floors @ base), 1e-3 * loss)
            power = np.linalg.lstsq(terms, np.log(above), rcond=None)[0]
            begin.append(np.concatenate([power, base]))
    else:
        begin = [np.array(start)]
    # Without a floor in the numbers ζ falls without end: the count bounds it.
    until = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12, "max_nfev": 300}
    fits = [least_squares(residuals, one, jacobian, method="lm", **until) for one in begin]
    return JointLaw(*min(fits, key=lambda fit: fit.cost).x.tolist())


def relative_residuals(
    predicted: Float[np.ndarray, " points"], measured: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    """Return (predicted − measured) / measured."""
    return (predicted - measured) / measured


def r_squared(
    predicted: Float[np.ndarray, " points"], measured: Float[np.ndarray, " points"]
) -> float:
    """Return R² of the logarithms; nan where a prediction is, or the measurements are all equal."""
    target = np.log(measured)
    total = float(((target - target.mean()) ** 2).sum()) if len(target) else 0.0
    if total == 0 or not np.isfinite(predicted).all():
        return np.nan
    return 1 - float(((np.log(predicted) - target) ** 2).sum()) / total


def held_out_residuals(
    fit: Callable[..., Law],
    inputs: Sequence[np.ndarray],
    measured: np.ndarray,
    folds: Int[np.ndarray, " points"],
) -> Float[np.ndarray, " points"]:
    """Return the relative residual of every point under the fit to all points of other folds."""
    found = np.full(len(measured), np.nan)
    for fold in np.unique(folds):
        rest, own = folds != fold, folds == fold
        law = fit(*(one[rest] for one in inputs), measured[rest])
        predicted = law(*(one[own] for one in inputs))
        found[own] = relative_residuals(predicted, measured[own].astype(float))
    return found


def blocks(points: int, folds: int) -> Int[np.ndarray, " points"]:
    """Return the fold of every point, where folds are runs of neighbours of about equal length."""
    return np.arange(points) * folds // max(points, 1)


def size_of_residuals(residuals: Float[np.ndarray, " points"]) -> dict[str, float]:
    """Return `median` and `max` of |residuals|, nan where one is nan or there is none."""
    sizes = np.abs(residuals)
    if not len(sizes) or np.isnan(sizes).any():
        return {"median": np.nan, "max": np.nan}
    return {"median": float(np.median(sizes)), "max": float(sizes.max())}


def bootstrap(
    fit: Callable[..., Sequence[float]],
    inputs: Sequence[np.ndarray],
    measured: np.ndarray,
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "resamples parameters"]:
    """Fit as many points drawn with replacement, `resamples` times; nan where they are too few."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(measured), size=(resamples, len(measured)))
    return np.array(
        [fit(*(one[row] for one in inputs), measured[row]) for row in chosen], dtype=float
    )


def percentile_interval(samples: Float[np.ndarray, " resamples"]) -> dict[str, float]:
    """Return `low` and `high` of the central 95%; nan where more than 5% of the samples are."""
    usable = samples[~np.isnan(samples)]
    if len(usable) == 0 or len(usable) < CONFIDENCE * len(samples):
        return {"low": np.nan, "high": np.nan}
    low, high = np.quantile(usable, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"low": float(low), "high": float(high)}


class Curve(NamedTuple):
    """A loss over training, from its first record to its last, never rising.

    A record is the mean over the vectors since the last one, and stands where they end.
    """

    vectors: Float[np.ndarray, " records"]
    nmse: Float[np.ndarray, " records"]

    def at(self, vectors: np.ndarray) -> Float[np.ndarray, " points"]:
        """Return the loss after so many vectors, linear in logarithms; nan outside the records."""
        if len(self.vectors) == 0:
            return np.full(len(vectors), np.nan)
        found = np.interp(
            np.log(vectors), np.log(self.vectors), np.log(self.nmse), left=np.nan, right=np.nan
        )
        return np.exp(found)

    def first_reaching(self, level: float) -> float:
        """Return the vectors at which the loss first is at most `level`.

        nan where it never is, and where it is from the first record on, so that it is not known.
        """
        reached: Bool[np.ndarray, " records"] = self.nmse <= level
        if not reached.any() or reached[0]:
            return np.nan
        i = int(np.argmax(reached))
        (x0, x1), (y0, y1) = np.log(self.vectors[i - 1 : i + 1]), np.log(self.nmse[i - 1 : i + 1])
        return float(np.exp(x0 + (x1 - x0) * (np.log(level) - y0) / (y1 - y0)))


def learning_curve(vectors: np.ndarray, nmse: np.ndarray) -> Curve:
    """Return the never rising curve nearest to a history (isotonic regression).

    The minimum of a noisy curve lies below the curve, the minimum of this one does not. Records
    that are not positive and finite are left out.
    """
    vectors, nmse = np.asarray(vectors, dtype=float), np.asarray(nmse, dtype=float)
    usable = np.isfinite(vectors) & np.isfinite(nmse) & (vectors > 0) & (nmse > 0)
    if not usable.any():
        return Curve(np.empty(0), np.empty(0))
    order = np.argsort(vectors[usable], kind="stable")
    falling = isotonic_regression(nmse[usable][order], increasing=False).x
    return Curve(vectors[usable][order], np.asarray(falling))
