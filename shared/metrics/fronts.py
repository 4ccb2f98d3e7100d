"""Fronts: a measure of autoencoders against their L0, and methods compared at matched L0.

A front has a point per penalty. Between its points it is a straight line in log L0; beyond them it
is not defined, so methods are compared on the range of L0 that all of them cover, and where there
is none the comparison is nan. Autoencoders whose L0 is zero, or whose measure is not finite, are
not points of a front.

Tables have a row per autoencoder, with the columns `method`, `seed`, `l0` and that of the measure.
Seeds are compared pairwise: a measure of a comparison is a list with an entry per seed, and nan
where one of the methods lacks the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from shared.experiment import Arrays

CONFIDENCE = 0.95
LEAST_SEEDS = 3
"""Seeds below which nothing is said about an ordering."""


class Front(NamedTuple):
    """The points of a front by rising L0, which is positive and finite."""

    l0: Float[np.ndarray, " points"]
    value: Float[np.ndarray, " points"]


def front(table: Arrays, method: str, seed: int, measure: str = "recovered") -> Front:
    """Return the front of one method and seed; autoencoders of the same L0 are averaged."""
    own = (table["method"] == method) & (table["seed"] == seed)
    l0, value = table["l0"][own].astype(float), table[measure][own].astype(float)
    usable = np.isfinite(l0) & np.isfinite(value) & (l0 > 0)
    l0, place = np.unique(l0[usable], return_inverse=True)
    return Front(l0, np.bincount(place, value[usable]) / np.bincount(place))


def seeds_of(table: Arrays, methods: Sequence[str]) -> tuple[int, ...]:
    """Return the seeds that any of the methods has."""
    return tuple(int(seed) for seed in np.unique(table["seed"][np.isin(table["method"], methods)]))


def points(table: Arrays, method: str, measure: str = "recovered") -> list[int]:
    """Return how many points the front of every seed of a method has."""
    return [len(front(table, method, seed, measure).l0) for seed in seeds_of(table, [method])]


class Matched(NamedTuple):
    """Fronts at the same L0: all their knots within the range that they share, or none."""

    l0: Float[np.ndarray, " knots"]
    values: Float[np.ndarray, "fronts knots"]

    def means(self) -> Float[np.ndarray, " fronts"]:
        """Return every front's mean over log L0 (exact, since it is linear between knots)."""
        if len(self.l0) < 2:
            return self.values[:, 0] if len(self.l0) else np.full(len(self.values), np.nan)
        log = np.log(self.l0)
        return np.trapezoid(self.values, log, axis=1) / (log[-1] - log[0])


def matched(fronts: Sequence[Front]) -> Matched:
    """Return fronts at matched L0, by linear interpolation in log L0, never extrapolating."""
    nothing = Matched(np.empty(0), np.empty((len(fronts), 0)))
    if not fronts or any(len(one.l0) == 0 for one in fronts):
        return nothing
    low, high = max(one.l0[0] for one in fronts), min(one.l0[-1] for one in fronts)
    if low > high:
        return nothing
    knots = np.unique(np.concatenate([one.l0 for one in fronts]))
    knots = knots[(knots >= low) & (knots <= high)]
    log = np.log(knots)
    return Matched(knots, np.stack([np.interp(log, np.log(one.l0), one.value) for one in fronts]))


@dataclass(frozen=True)
class Comparison:
    """Methods at matched L0, seed by seed, each seed on the range that its own fronts share."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    matched: tuple[Matched, ...]

    def means(self, method: str) -> Float[np.ndarray, " seeds"]:
        """Return the mean of a method's front over log L0, by seed."""
        place = self.methods.index(method)
        return np.array([one.means()[place] for one in self.matched], dtype=float)

    def gaps(self, upper: str, lower: str) -> list[Float[np.ndarray, " knots"]]:
        """Return upper − lower at every knot, by seed."""
        a, b = self.methods.index(upper), self.methods.index(lower)
        return [one.values[a] - one.values[b] for one in self.matched]

    def gap(self, upper: str, lower: str) -> Float[np.ndarray, " seeds"]:
        """Return the mean of upper − lower over log L0, by seed."""
        return self.means(upper) - self.means(lower)

    def least_gap(self, upper: str, lower: str) -> Float[np.ndarray, " seeds"]:
        """Return the least upper − lower over the common range, which lies at a knot, by seed."""
        found = [gap.min() if len(gap) else np.nan for gap in self.gaps(upper, lower)]
        return np.array(found, dtype=float)

    def greatest_distance(self, one: str, other: str) -> Float[np.ndarray, " seeds"]:
        """Return the greatest |one − other| over the common range, by seed."""
        found = [np.abs(gap).max() if len(gap) else np.nan for gap in self.gaps(one, other)]
        return np.array(found, dtype=float)

    def bounds(self) -> dict[str, Float[np.ndarray, " seeds"]]:
        """Return the common range of L0 by seed: `low`, `high`, and `span`, their ratio."""
        ends = [(one.l0[0], one.l0[-1]) if len(one.l0) else (np.nan,) * 2 for one in self.matched]
        low, high = np.array(ends, dtype=float).reshape(-1, 2).T
        return {"low": low, "high": high, "span": high / low}


def compare(
    table: Arrays,
    methods: Sequence[str],
    measure: str = "recovered",
    seeds: Sequence[int] | None = None,
) -> Comparison:
    """Compare methods at matched L0 over some seeds, by default those that any of them has."""
    chosen = tuple(seeds_of(table, methods) if seeds is None else seeds)
    return Comparison(
        tuple(methods),
        chosen,
        tuple(matched([front(table, m, seed, measure) for m in methods]) for seed in chosen),
    )


def _quantile(freedom: int, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def interval(values: Float[np.ndarray, " seeds"]) -> dict[str, float]:
    """Return mean, `low` and `high` of Student's two-sided interval; nan below two seeds."""
    if len(values) == 0:
        return dict.fromkeys(("mean", "low", "high"), np.nan)
    mean, half = float(values.mean()), np.nan
    if len(values) > 1:
        quantile = _quantile(len(values) - 1, (1 + CONFIDENCE) / 2)
        half = quantile * float(values.std(ddof=1)) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def lower_bound(values: Float[np.ndarray, " seeds"]) -> float:
    """Return Student's one-sided lower bound of the mean; nan below three seeds.

    Above zero, the mean is positive beyond what seeds explain.
    """
    if len(values) < LEAST_SEEDS:
        return np.nan
    quantile = _quantile(len(values) - 1, CONFIDENCE)
    return float(values.mean() - quantile * values.std(ddof=1) / len(values) ** 0.5)


def curve(table: Arrays, method: str, measure: str = "recovered") -> dict[str, Any]:
    """Return what `draw_curve` draws of a method: all points, and mean and extremes of seeds."""
    fronts = [front(table, method, seed, measure) for seed in seeds_of(table, [method])]
    shared = matched(fronts)
    some = len(shared.l0) > 0
    return {
        "l0": np.concatenate([one.l0 for one in fronts]) if fronts else [],
        "value": np.concatenate([one.value for one in fronts]) if fronts else [],
        "band": {
            "l0": shared.l0,
            "mean": shared.values.mean(0) if some else [],
            "low": shared.values.min(0) if some else [],
            "high": shared.values.max(0) if some else [],
        },
    }


def curves(
    table: Arrays, methods: Sequence[str], measure: str = "recovered"
) -> dict[str, dict[str, Any]]:
    """Return `curve` of those of the methods that have points."""
    found = {method: curve(table, method, measure) for method in methods}
    return {method: one for method, one in found.items() if len(one["l0"])}
