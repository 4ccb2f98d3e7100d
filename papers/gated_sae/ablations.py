"""What the parts of a Gated SAE are worth: its ablations, and SAELens' class beside them.

Section 5.1, Figure 8: the decoder of the auxiliary loss not frozen, no r_mag, encoders not tied.
SAELens trains the first of these with further differences; `sae_lens_*` are its own class and
autoencoders between that class and ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from papers.gated_sae.fronts import METHODS, SAE_LENS, Parameters, reader
from shared.experiment import Arrays, Evaluation, Experiment, Figure
from shared.figures.fronts import draw_curves, floats, l0_axis
from shared.figures.style import panel_labels, subplots
from shared.metrics.fronts import (
    compare,
    curves,
    front,
    interval,
    lower_bound,
    matched,
    points,
    seeds_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FULL = "gated"
ABLATIONS = {
    "unfrozen": "gated_unfrozen",
    "no_r_mag": "gated_no_r_mag",
    "untied": "gated_untied",
}
PATH = {
    "gated": "as shipped",
    "unit_norm": "unit norm",
    "init_norm": "first norm 1",
    "median_start": "median start",
    "clip": "no clipping",
    "betas": "Adam's β",
    "lr_warmup": "lr warm-up",
    "penalty_warmup": "λ warm-up",
    "ema": "average",
}
"""From SAELens' class to ours without a frozen decoder: what each step changes besides the last."""


def path_of(table: Arrays) -> list[str]:
    """Return the methods from SAELens' class towards ours that were trained, in order."""
    trained = set(table["method"].tolist())
    return [name for step in PATH if (name := f"sae_lens_{step}") in trained]


def cost(table: Arrays, method: str) -> dict[str, Any]:
    """Return the full and an ablated Gated SAE at matched L0, seed by seed.

    `lead` is the lower bound of ablated − full: above zero, the ablation is better beyond noise.
    """
    found = compare(table, (FULL, method))
    return {
        "full": found.means(FULL),
        "ablated": found.means(method),
        "gap": interval(found.gap(method, FULL)),
        "lead": lower_bound(found.gap(method, FULL)),
        "common": found.bounds(),
    }


def nearness(table: Arrays, variant: str, other: str) -> dict[str, Any]:
    """Return how near a SAELens front lies to another, by seed of the SAELens autoencoders.

    `gap` is the mean of variant − other over the common range, `greatest` its largest magnitude.
    """
    found = compare(table, (variant, other), seeds=seeds_of(table, [variant]))
    return {
        "gap": found.gap(variant, other),
        "greatest": found.greatest_distance(variant, other),
        "common": found.bounds(),
    }


def offsets(table: Arrays, method: str, other: str) -> dict[float, float]:
    """Return, by penalty, a method's loss recovered minus that of another front at its own L0.

    Means over the seeds of the method; nan where the other front does not reach that L0.
    """
    found: dict[float, list[float]] = {}
    for row in np.flatnonzero(table["method"] == method):
        seed = int(table["seed"][row])
        theirs = front(table, other, seed)
        own = front({key: values[[row]] for key, values in table.items()}, method, seed)
        gap = matched([own, theirs]).means()
        found.setdefault(float(table["penalty"][row]), []).append(float(gap[0] - gap[1]))
    return {penalty: float(np.mean(gaps)) for penalty, gaps in sorted(found.items())}


def along_path(table: Arrays) -> dict[str, Any]:
    """Return `offsets` from the unfrozen front along the path, at the penalties of all its steps.

    `gap` is [steps, penalties]; `distance`, by step, the mean of its magnitude.
    """
    steps = path_of(table)
    found = [offsets(table, name, ABLATIONS["unfrozen"]) for name in steps]
    penalties = sorted(set.intersection(*map(set, found))) if found else []
    gap = np.array([[one[penalty] for penalty in penalties] for one in found], dtype=float)
    return {
        "steps": [name.removeprefix("sae_lens_") for name in steps],
        "penalty": penalties,
        "gap": gap,
        "distance": np.abs(gap).mean(1) if penalties else [],
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Compare every ablation with the full Gated SAE, and SAELens' class with both."""
    others = (*ABLATIONS.values(), "sae_lens_gated")
    path = along_path(arrays)
    metrics = {
        "points": {method: points(arrays, method) for method in (FULL, *others)},
        **{name: cost(arrays, method) for name, method in ABLATIONS.items()},
        "sae_lens": {
            "to_unfrozen": nearness(arrays, "sae_lens_gated", ABLATIONS["unfrozen"]),
            "to_gated": nearness(arrays, "sae_lens_gated", FULL),
            "path": path,
        },
    }
    lines = {}
    for method in others:
        found = compare(arrays, (method, FULL), seeds=seeds_of(arrays, [method]))
        lines[method] = [
            {"l0": one.l0, "gap": gap}
            for one, gap in zip(found.matched, found.gaps(method, FULL), strict=True)
        ]
    return Evaluation(
        metrics,
        {
            "ablations": {"curves": curves(arrays, (FULL, *others)), "gaps": lines},
            "sae_lens_path": path,
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """Draw the fronts, and what every one of them has more or less than the full Gated SAE."""
    figure, axes = subplots(1, 2, 2.9)
    fronts, gaps = axes[0]
    draw_curves(fronts, METHODS, data["curves"], "loss recovered")
    for method, lines in data["gaps"].items():
        for one in lines:
            gaps.plot(
                floats(one["l0"]),
                100 * floats(one["gap"]),
                METHODS[method].line,
                marker=METHODS[method].marker,
                color=METHODS[method].colour,
                markersize=2.5,
                linewidth=0.8,
            )
    gaps.axhline(0, color=METHODS[FULL].colour, linewidth=1)
    l0_axis(gaps)
    gaps.set(ylabel="minus Gated (perc. points)")
    figure.legend(*fronts.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    panel_labels(axes)
    return figure


def draw_path(data: Mapping[str, Any]) -> Canvas:
    """Draw the gap to the front of the unfrozen decoder, step by step."""
    figure, axes = subplots(1, 1, 2.6)
    panel: Axes = axes[0, 0]
    place = np.arange(len(data["steps"]))
    gap = 100 * floats(data["gap"]).reshape(len(place), len(data["penalty"]))
    for number, penalty in enumerate(data["penalty"]):
        grey = f"{0.65 * number / max(len(data['penalty']) - 1, 1):.2f}"
        panel.plot(place, gap[:, number], "-o", color=grey, label=f"λ = {penalty:g}")
    panel.axhline(0, color=METHODS[ABLATIONS["unfrozen"]].colour, label="Decoder not frozen")
    titles = [("+ " if number else "") + PATH[step] for number, step in enumerate(data["steps"])]
    panel.set_xticks(place, titles, rotation=20, ha="right")
    panel.set(ylabel="loss recovered, minus the front of\nthe decoder not frozen (perc. points)")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center")
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=reader(FULL, *ABLATIONS.values(), SAE_LENS),
    evaluate=evaluate,
    figures=(
        Figure(
            name="ablations",
            title="Ablations of the Gated SAE, and SAELens' gated class",
            caption="(a) Loss recovered against L0 of the full Gated SAE, of its three ablations, "
            "and of SAELens' class as shipped. Lines are means of seeds, bands reach from the "
            "least to the greatest seed. (b) Each minus the full Gated SAE at matched L0, seed by "
            "seed, on the range that both cover.",
            original="Figure 8 (in the NeurIPS version 7a); SAELens' class is not in the paper",
            draw=draw,
        ),
        Figure(
            name="sae_lens_path",
            title="From SAELens' gated class to the ablation it resembles",
            caption="Loss recovered by SAELens' class as shipped, and after each change towards "
            "ours, every step with all changes before it, minus that of our Gated SAE with a "
            "decoder that is not frozen, at the same L0. What is left at the end is resampling.",
            original="none",
            draw=draw_path,
        ),
    ),
)
