"""Fronts: a measure of autoencoders against their L0, and methods compared at matched L0.

A front has a point per penalty. Between its points it is a straight line in log L0; beyond them it
is not defined, so methods are compared on the range of L0 that all of them cover, and where there
is none the comparison is nan. Autoencoders whose L0 is zero, or whose measure is not finite, are
not points of a front.

Seeds are compared pairwise: a measure of a comparison is a list with an entry per seed, and nan
where one of the methods lacks the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from shared.experiment import Arrays, Config, Run
from shared.figures.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLUMNS = (
    *("name", "method", "model", "site", "d_sae", "penalty", "seed", "l0", "gamma"),
    *("loss", "spliced", "recovered", "alive", "frequent"),
)
"""What the fronts read of `scores`."""
CONFIDENCE = 0.95
LEAST_SEEDS = 3
"""Seeds below which nothing is said about an ordering."""


class Look(NamedTuple):
    """How a method is called and drawn, the same in every figure."""

    label: str
    colour: str
    marker: str = "o"
    line: str = "-"


METHODS = {
    "gated": Look("Gated", PALETTE[0]),
    "baseline": Look("Baseline, 1.5 × latents", PALETTE[1], "s"),
    "baseline_equal": Look("Baseline, equal latents", PALETTE[1], "D", "--"),
    "rescaled": Look("Rescale & shift", PALETTE[3], "v"),
    "gated_unfrozen": Look("Decoder not frozen", PALETTE[4], "X"),
    "gated_no_r_mag": Look(r"No $r_\mathrm{mag}$", PALETTE[5], "P"),
    "gated_untied": Look("Untied encoders", PALETTE[3], "p"),
    "jumprelu": Look("JumpReLU", PALETTE[2], "^"),
    "topk": Look("TopK", PALETTE[4], "h"),
    "sae_lens_gated": Look("SAELens' gated", PALETTE[6], "*", "--"),
}
SAE_LENS = "sae_lens_*"
"""SAELens' class as shipped, and those between it and ours."""


class Parameters(Config):
    """What a profile sets: the language model and the site whose autoencoders are compared."""

    model: str = "one_layer_a"
    site: str = "mlp_post.0"


def select(scores: Arrays, methods: Sequence[str], model: str, sites: Sequence[str]) -> Arrays:
    """Return a model's rows of some methods and sites, which may be patterns like "gated_*"."""
    wanted = {"model": (model,), "site": tuple(sites), "method": tuple(methods)}
    rows = np.ones(len(scores["name"]), dtype=bool)
    for column, patterns in wanted.items():
        found = [any(fnmatchcase(str(v), p) for p in patterns) for v in scores[column]]
        rows &= np.array(found, dtype=bool)
    return {column: scores[column][rows] for column in COLUMNS}


def reader(*methods: str) -> Callable[[Parameters, Run], Arrays]:
    """Return the training function of an experiment that only reads the scores of some methods."""

    def read(config: Parameters, run: Run) -> Arrays:
        return select(run.inputs["scores"], methods, config.model, (config.site,))

    return read


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


EXACT, AT_LEAST, AT_MOST = "exact", "at_least", "at_most"


class Ratios(NamedTuple):
    """How many times the L0 of one method another needs for the same recovery, point by point."""

    ratio: Float[np.ndarray, " points"]
    kind: list[str]
    """Per point EXACT, or a bound: AT_LEAST, AT_MOST."""
    level: Float[np.ndarray, " points"]
    """The recovery."""
    without: int
    """Points about which nothing can be said."""


def l0_reaching(one: Front, level: float) -> tuple[float, str]:
    """Return the least L0 at which a front reaches a level, and whether it is exact or a bound.

    AT_MOST: the sparsest point recovers more. AT_LEAST: no point recovers so much.
    """
    reached = np.flatnonzero(one.value >= level)
    if len(reached) == 0:
        return float(one.l0[-1]), AT_LEAST
    at = reached[0]
    if at == 0:
        return float(one.l0[0]), EXACT if one.value[0] == level else AT_MOST
    start, end = one.value[at - 1], one.value[at]
    share = (level - start) / (end - start)
    low, high = np.log(one.l0[at - 1]), np.log(one.l0[at])
    return (float(one.l0[at]) if share == 1 else float(np.exp(low + share * (high - low)))), EXACT


def l0_ratios(baseline: Front, gated: Front) -> Ratios:
    """Return, for every gated autoencoder, the baseline's L0 at the same recovery over its own L0.

    Where the baseline's front does not pass that recovery, a bound remains, and is kept where it
    says who needs less: "at least" from 1 on, "at most" up to 1.
    """
    found: list[tuple[float, str, float]] = []
    for l0, level in zip(gated.l0, gated.value, strict=True) if len(baseline.l0) else ():
        theirs, kind = l0_reaching(baseline, float(level))
        ratio = theirs / float(l0)
        if kind == EXACT or (ratio >= 1 if kind == AT_LEAST else ratio <= 1):
            found.append((ratio, kind, float(level)))
    return Ratios(
        np.array([ratio for ratio, _, _ in found], dtype=float),
        [kind for _, kind, _ in found],
        np.array([level for _, _, level in found], dtype=float),
        len(gated.l0) - len(found),
    )


def summary_of_ratios(all_ratios: Sequence[Ratios]) -> dict[str, Any]:
    """Summarise comparisons. Bounds count at their value: a median above 1 is itself a lower bound.

    Returns `median`, `quartiles`, `least`, the shares from 1.5 and from 2 on, the numbers of exact
    comparisons and of bounds, and of points `without` a comparison; nan where there is none.
    """
    ratio = np.concatenate([one.ratio for one in all_ratios]) if all_ratios else np.empty(0)
    kinds = [kind for one in all_ratios for kind in one.kind]
    some = len(ratio) > 0
    return {
        "median": float(np.median(ratio)) if some else np.nan,
        "quartiles": np.quantile(ratio, [0.25, 0.75]) if some else np.full(2, np.nan),
        "least": float(ratio.min()) if some else np.nan,
        "from_1_5": float((ratio >= 1.5).mean()) if some else np.nan,
        "from_2": float((ratio >= 2).mean()) if some else np.nan,
        **{kind: kinds.count(kind) for kind in (EXACT, AT_LEAST, AT_MOST)},
        "without": sum(one.without for one in all_ratios),
    }


PAPER_RATIOS = {
    "median": 2.13,
    "quartiles": [1.73, 2.63],
    "least": 1.0,
    "from_1_5": 0.85,
    "from_2": 0.55,
    "source": "interpolated in log L0 between the rows of Tables 1 to 8: 53 comparisons at 18 "
    "sites of Pythia-2.8B and Gemma-7B, some of them lower bounds",
}
"""L0 of the baseline over that of Gated SAEs at equal recovery, in the paper's models."""


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


def floats(values: Any) -> np.ndarray:
    """Return numbers that were read from JSON, with nan for null."""
    return np.array(values, dtype=float)


def draw_curve(panel: Axes, look: Look, data: Mapping[str, Any]) -> None:
    """Draw a method: its points, the mean of seeds as a line, least to greatest seed as a band."""
    band = {key: floats(value) for key, value in data["band"].items()}
    panel.fill_between(
        band["l0"], band["low"], band["high"], color=look.colour, alpha=0.2, linewidth=0
    )
    panel.plot(band["l0"], band["mean"], look.line, color=look.colour, linewidth=1)
    panel.plot(
        floats(data["l0"]),
        floats(data["value"]),
        look.marker,
        color=look.colour,
        markersize=3,
        markeredgewidth=0,
    )
    panel.plot([], [], look.line, marker=look.marker, color=look.colour, label=look.label)


def draw_curves(panel: Axes, data: Mapping[str, Mapping[str, Any]], ylabel: str) -> None:
    """Draw methods against L0, which is on a log scale with plain numbers as ticks."""
    for method, one in data.items():
        draw_curve(panel, METHODS[method], one)
    l0_axis(panel)
    panel.set(ylabel=ylabel)


def l0_axis(panel: Axes, ticks: Sequence[int] = (1, 2, 5)) -> None:
    """Make the x-axis one of L0, on a log scale; `ticks` are times 10ⁿ."""
    panel.set(xscale="log", xlabel="L0")
    plain_ticks(panel.xaxis, ticks)


def plain_ticks(axis: Axis, ticks: Sequence[int] = (1, 2, 5)) -> None:
    """Label a log scale with plain numbers, at `ticks` times 10ⁿ."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def ratio_numbers(all_ratios: Sequence[Ratios]) -> dict[str, Any]:
    """Return what `draw_ratios` draws."""
    summary = summary_of_ratios(all_ratios)
    return {
        "ratio": [float(value) for one in all_ratios for value in one.ratio],
        "kind": [kind for one in all_ratios for kind in one.kind],
        "median": summary["median"],
        "paper": PAPER_RATIOS,
    }


def draw_ratios(panel: Axes, data: Mapping[str, Any]) -> None:
    """Draw the share of comparisons whose ratio is at most so large; bounds as triangles.

    Beside it stand the paper's quartiles, and its shares from 1.5 and from 2 on.
    """
    ratio = floats(data["ratio"])
    order = np.argsort(ratio)
    share = np.arange(1, len(ratio) + 1) / max(len(ratio), 1)
    kinds = np.array(data["kind"], dtype=str)[order]
    colour = METHODS["gated"].colour
    panel.step(ratio[order], share, where="post", color=colour, linewidth=0.8)
    for kind, marker, label in (
        (EXACT, "o", "here"),
        (AT_LEAST, ">", "here, at least"),
        (AT_MOST, "<", "here, at most"),
    ):
        own = kinds == kind
        if own.any():
            panel.plot(ratio[order][own], share[own], marker, color=colour, label=label)
    paper = data["paper"]
    at = [
        *zip(paper["quartiles"], (0.25, 0.75), strict=True),
        (paper["median"], 0.5),
        (1.5, 1 - paper["from_1_5"]),
        (2.0, 1 - paper["from_2"]),
    ]
    x, y = zip(*sorted(at), strict=True)
    panel.plot(x, y, "--", marker="D", color="0.4", markersize=3, label="paper, Tables 1–8")
    panel.axvspan(*paper["quartiles"], color="0.9", zorder=0, linewidth=0)
    panel.axvline(1, color="0.4", linewidth=0.6)
    panel.set(xlabel="L0 of the baseline / L0 of Gated, equal recovery", ylim=(0, 1.03))
    panel.set(ylabel="share of comparisons", xlim=(min([0.9, *ratio]), max([3.2, *ratio * 1.03])))
    panel.legend(loc="best")
