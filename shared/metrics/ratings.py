"""Statistics of paired, blinded ratings: does one kind of feature get higher labels than another?

Those of Gated SAE (section 4.3, appendix H), all computed by SciPy. Labels may be any numbers;
there No, Maybe and Yes are 0, 1 and 2. Data in which nothing varies are no evidence: their p-value
is 1, and their interval is a point.

Functions work along the last axis, and on many studies at once along the axes before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from scipy import stats

CONFIDENCE = 0.9
RESAMPLES = 2000
BATCH = 20_000_000
"""Numbers that a bootstrap holds at a time."""

Values = Float[np.ndarray, "*studies"]


@dataclass(frozen=True)
class Interval:
    """A mean and the limits of its confidence interval."""

    mean: Values
    low: Values
    high: Values

    def holds(self, value: float) -> np.ndarray:
        """Return whether a value lies within, limits included."""
        return np.asarray((self.low <= value) & (value <= self.high))


def _p(result: Any) -> Values:
    """Return p-values, 1 where SciPy finds no variation to rank."""
    p = np.asarray(result.pvalue, dtype=float)
    return np.where(np.isnan(p), 1.0, p)


def wilcoxon_pratt(differences: Num[np.ndarray, "*studies pairs"]) -> Values:
    """Return the one-sided p-value of Wilcoxon's signed-rank test that differences exceed zero.

    Ranked with the zeros, which are then left out (Pratt 1959); normal approximation, corrected
    for ties.
    """
    with np.errstate(invalid="ignore"):
        return _p(
            stats.wilcoxon(
                differences,
                zero_method="pratt",
                alternative="greater",
                method="asymptotic",
                axis=-1,
            )
        )


def mean_interval(
    values: Num[np.ndarray, "*studies n"],
    seed: int | Sequence[int],
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the mean and its bias-corrected and accelerated bootstrap interval (BCa).

    Efron 1987; `confidence` is two-sided. Studies given together share their resamples' indices.
    The limits of a single value are NaN.
    """
    mean = np.asarray(values.mean(-1))
    if values.shape[-1] < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        limits = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            axis=-1,
            vectorized=True,
            batch=max(1, BATCH // values.size),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    constant = (values == values[..., :1]).all(-1)
    return Interval(
        mean,
        np.where(constant, mean, limits.low),
        np.where(constant, mean, limits.high),
    )


def mann_whitney(
    left: Num[np.ndarray, "*studies left"], right: Num[np.ndarray, "*studies right"]
) -> Values:
    """Return the two-sided p-value that two independent groups differ (Mann–Whitney U)."""
    return _p(stats.mannwhitneyu(left, right, method="asymptotic", axis=-1))


def kruskal_wallis(*groups: Num[np.ndarray, "*studies _"]) -> Values:
    """Return the p-value that independent groups, such as raters, differ (Kruskal–Wallis H)."""
    with np.errstate(invalid="ignore"):
        return _p(stats.kruskal(*groups, axis=-1))


def friedman(*treatments: Num[np.ndarray, "*studies blocks"]) -> Values:
    """Return the p-value that treatments, such as sites, differ within blocks (Friedman χ²).

    A block, such as one rater at one layer, has one value of every treatment; SciPy asks for three
    treatments or more.
    """
    with np.errstate(invalid="ignore"):
        return _p(stats.friedmanchisquare(*treatments, axis=-1))
