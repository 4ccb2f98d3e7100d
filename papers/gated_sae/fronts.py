"""What the fronts of this paper have in common: scores that are read, looks, ratios of L0.

Fronts themselves, and their comparison at matched L0, are those of `shared.metrics.fronts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from shared.experiment import Arrays, Config, Run
from shared.figures.fronts import Look, floats
from shared.figures.style import PALETTE
from shared.metrics.fronts import Front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    *("name", "method", "model", "site", "d_sae", "penalty", "seed", "l0", "gamma"),
    *("loss", "spliced", "recovered", "alive", "frequent"),
)
"""What the fronts read of `scores`."""
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
