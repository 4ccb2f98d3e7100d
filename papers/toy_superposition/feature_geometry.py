"""E1 and E2: dimensions per feature, and the polytopes into which equal features arrange.

Section "The Geometry of Superposition": all features equally important, one model per density. Two
sizes: the notebook's (n = 200, m = 20; its recipe, against the values that its authors saved) and
the paper's (n = 400, m = 30). Two densities of the paper's size train longer: that resolves the
line at 2/3 and the cluster of features just below 3/4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int

from papers.toy_superposition.geometry import (
    components,
    cosines,
    dimensionality,
    dimensions_per_feature,
    gram,
    norms,
)
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.polytopes import COLOURS, FRACTIONS, identify
from papers.toy_superposition.training import Recipe, generator, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, subplots
from shared.parallel import side_by_side, workers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

NOTEBOOK_N, NOTEBOOK_M = 200, 20
NOTEBOOK_DENSITIES = tuple(20 ** (-k / 19) for k in range(20))
SAVED = (1.003, .998, .951, .830, .584, .526, .510, .505, .503, .433, .369, .341, .289, .261, .228,
         .208, .188, .170, .151, .136)  # fmt: skip
"""D* at these densities, as saved in the authors' notebook."""

N, M = 400, 30
LONG_DENSITIES = (0.65, 0.6)
DENSITIES = (*(10 ** (-k / 9) for k in range(10) if k != 2), 0.2)  # k = 2 is 0.6

GRAPHS = (0.6, DENSITIES[4], DENSITIES[5], 0.2)  # densities whose graphs are drawn

STICKY = 0.03  # how near to 1 or 1/2 a level of D* counts as on the plateau
UNPRIVILEGED = 0.95  # from this D* on W is arbitrary up to a rotation, and so is D_i
LINE = 0.005  # half-width of a window about a line
FLANK = 1.25  # how far off a window its flanks are, in widths
BELOW = 0.03  # by how much features that are not learned may lower D_i
JOINED = 0.1  # |W_i·W_j| from which the graphs draw an edge
OTHER = "0.55"  # the grey of features outside any of the polytopes
PRESENT = 0.5  # ‖W_i‖ from which a feature is learned


class Setting(Config):
    """How the models of one size train."""

    recipe: Recipe
    batch: int


class Parameters(Config):
    """What a profile sets."""

    notebook: Setting
    paper: Setting
    long: Setting


def joint_xavier(n: int, m: int) -> float:
    """Return the standard deviation of the notebook's `xavier_normal_` on [20, n, m].

    It takes n·m for the fan-in and instances·m for the fan-out, so that weights start smaller
    than in a model that is initialised by itself.
    """
    return math.sqrt(2 / (n * m + len(NOTEBOOK_DENSITIES) * m))


def _train(
    n: int,
    m: int,
    densities: tuple[float, ...],
    setting: Setting,
    run: Run,
    label: str,
    levels: Int[Array, " levels"],
) -> Arrays:
    """Train one model at each of `levels` of the densities.

    All densities start from one draw and see the same random numbers (empty inputs are rare at
    each), so that it makes no difference to a model which others train along.
    """
    start = create(
        Architecture(),
        instances=len(densities),
        n=n,
        m=m,
        generator=generator(run.seed, 0, run.device),
        std=joint_xavier(n, m),
    ).select(torch.tensor(levels, device=run.device))
    density = torch.tensor(densities)[levels]
    inputs = SparseUniform(density, n, setting.batch)
    trained = train(start, inputs, setting.recipe, run.seed, label)
    return {
        "density": density.numpy(),
        "W": trained.W.cpu().numpy(),
        "b": trained.b.cpu().numpy(),
    }


def run(config: Parameters, run: Run) -> Arrays:
    """Train both sizes; the paper's size comes with its longer runs, ordered by density.

    Each set of densities is split among the processor's cores: one thread on half of the models
    does more than half of what two threads do on all.
    """
    sets = {
        "notebook's size": (NOTEBOOK_N, NOTEBOOK_M, NOTEBOOK_DENSITIES, config.notebook),
        "paper's size": (N, M, DENSITIES, config.paper),
        "paper's size, longer": (N, M, LONG_DENSITIES, config.long),
    }
    shares = workers(run.device, config.notebook.recipe.steps)
    jobs = {
        (label, share): partial(_train, n, m, densities, setting, run, label, levels)
        for label, (n, m, densities, setting) in sets.items()
        for share, levels in enumerate(np.array_split(np.arange(len(densities)), shares))
        if len(levels)
    }
    trained = side_by_side(jobs, shares)
    notebook, joint = (
        _joined([arrays for (label, _), arrays in trained.items() if label in labels])
        for labels in (["notebook's size"], ["paper's size", "paper's size, longer"])
    )
    order = np.argsort(-joint["density"])
    return {f"notebook_{key}": array for key, array in notebook.items()} | {
        key: array[order] for key, array in joint.items()
    }


def _joined(parts: list[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def window(D: Float[Array, " features"], middle: float, half: float) -> dict[str, Any]:
    """Count features within ±`half` of a line, and in two flanking windows of the same width."""
    below, on, above = (
        int((np.abs(D - middle - away * 2 * half) <= half).sum()) for away in (-FLANK, 0, FLANK)
    )
    return {"on": on, "flanks": [below, above], "flank": (below + above) / 2}


def lines(W: Float[Array, "levels m n"]) -> dict[str, Any]:
    """Count features on and beside each of the paper's lines, where directions mean something."""
    D = dimensionality(W)[dimensions_per_feature(W) < UNPRIVILEGED]
    return {
        _key(name): window(D.ravel(), float(fraction), LINE) for name, fraction in FRACTIONS.items()
    }


def shapes(W: Float[Array, "m n"]) -> list[tuple[str | None, list[int]]]:
    """Return groups of interfering features, and the polytope that each forms if it forms one."""
    groups = [group for group in components(W, present=PRESENT) if len(group) > 1]
    return [(identify(W[:, group]), group) for group in groups]


def census(models: list[Float[Array, "_ _"]]) -> dict[str, Any]:
    """Count the polytopes in all models, and average D_i over their features (0 without any)."""
    members: dict[str, list[float]] = {name: [] for name in FRACTIONS}
    counts = dict.fromkeys(FRACTIONS, 0)
    for W in models:
        D = dimensionality(W)
        for name, group in shapes(W):
            if name is not None:
                counts[name] += 1
                members[name].extend(D[group])
    return {
        _key(name): {
            "count": counts[name],
            "dimensionality": np.mean(members[name]) if members[name] else 0.0,
        }
        for name in FRACTIONS
    }


def _key(name: str) -> str:
    return name.replace(" ", "_")


def resolved(W: Float[Array, "m n"], fraction: float) -> dict[str, Any]:
    """Count features at a fraction or a little below it, and how they lie to one another.

    Features that are not learned but not zero either lower D_i, so the window reaches BELOW the
    fraction. `nearest_cosine` is the median over the window's features of their lowest cosine
    with another learned feature: -1/3 in a tetrahedron, -1/2 in a triangle.
    """
    middle, half = fraction - BELOW / 2, LINE + BELOW / 2
    D = dimensionality(W)
    learned = norms(W) > PRESENT
    inside = learned & (np.abs(D - middle) <= half)
    lowest = cosines(W)[np.ix_(inside, learned)].min(axis=1, initial=1.0)
    return window(D, middle, half) | {
        "nearest_cosine": np.median(lowest) if len(lowest) else 0.0,
    }


def sum_error(W: Float[Array, "levels m n"]) -> float:
    """Return by what share ΣD_i misses m, at the worst level."""
    total = dimensionality(W).sum(-1)
    return float(np.abs(total / W.shape[-2] - 1).max())


def learned_features(W: Float[Array, "m n"]) -> dict[str, Any]:
    """Return D_i of the learned features, the largest first, and the polytope each belongs to."""
    D = dimensionality(W)
    kept = sorted(np.flatnonzero(norms(W) > PRESENT), key=lambda i: -D[i])
    names = _names(W)
    return {"dimensionality": D[kept], "names": [names.get(int(i), "") for i in kept]}


def _names(W: Float[Array, "m n"]) -> dict[int, str]:
    return {i: name for name, group in shapes(W) if name for i in group}


def graph(W: Float[Array, "m n"]) -> dict[str, Any]:
    """Return the feature-geometry graph: learned features joined by |W_i·W_j|, named by shape."""
    kept = np.flatnonzero(norms(W) > PRESENT)
    names = _names(W)
    overlap = np.abs(gram(W))
    return {
        "names": [names.get(int(i), "") for i in kept],
        "edges": [
            [a, b, overlap[i, j]]
            for a, i in enumerate(kept)
            for b, j in enumerate(kept[:a])
            if overlap[i, j] > JOINED
        ],
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Measure plateaus, lines, sums and shapes of both sizes."""
    W, notebook = arrays["W"], arrays["notebook_W"]
    star, notebook_star = dimensions_per_feature(W), dimensions_per_feature(notebook)
    tetrahedra, triangles = (_level(arrays, density) for density in LONG_DENSITIES)

    def near(levels: Float[Array, " levels"], value: float) -> int:
        return int((np.abs(levels - value) <= STICKY).sum())

    return Evaluation(
        metrics={
            "notebook": {
                "dimensions_per_feature": notebook_star,
                "levels_at_one": near(notebook_star, 1.0),
                "levels_at_half": near(notebook_star, 0.5),
                "sum_error": sum_error(notebook),
                "lines": lines(notebook),
            },
            "paper": {
                "dimensions_per_feature": star,
                "densest": star[0],
                "levels_at_half": near(star, 0.5),
                "sum_error": sum_error(W),
                "lines": lines(W),
            },
            "polytopes": census([*notebook, *W]),
            "long": {
                "three_quarters": resolved(W[tetrahedra], 3 / 4),
                "two_thirds": resolved(W[triangles], 2 / 3),
            },
        },
        figures={
            "dimensions_per_feature": {
                "notebook_density": arrays["notebook_density"],
                "notebook": notebook_star,
                "saved": SAVED,
                "density": arrays["density"],
                "paper": star,
            },
            "feature_geometry": {
                "density": arrays["density"],
                "dimensions_per_feature": star,
                "features": [learned_features(model) for model in W],
                "graph_density": GRAPHS,
                "graphs": [graph(W[_level(arrays, density)]) for density in GRAPHS],
            },
        },
    )


def _level(arrays: Arrays, density: float) -> int:
    return int(np.abs(arrays["density"] - density).argmin())


def draw_dimensions(data: Mapping[str, Any]) -> Canvas:
    """D* against 1/(1-S): both sizes, and what the authors' notebook saved."""
    figure, axes = subplots(height=3.0)
    axis = axes[0, 0]
    for value, text in ((1, "1"), (0.5, "1/2")):
        axis.axhline(value, color="0.6", linewidth=0.8, linestyle="--", zorder=1)
        axis.annotate(
            f"D* = {text}", (20.5, value), xytext=(0, 3), textcoords="offset points",
            ha="right", color="0.35",
        )  # fmt: skip
    axis.plot(
        1 / np.array(data["notebook_density"]), data["saved"], "o", markersize=7,
        markerfacecolor="none", color="0.35", label="authors' saved run, n = 200, m = 20",
    )  # fmt: skip
    axis.plot(
        1 / np.array(data["notebook_density"]), data["notebook"], "o-", color=PALETTE[0],
        label="ours, n = 200, m = 20",
    )  # fmt: skip
    axis.plot(
        1 / np.array(data["density"]), data["paper"], "s-", color=PALETTE[4],
        label="ours, n = 400, m = 30",
    )  # fmt: skip
    _density_axis(axis, [1, 2, 3, 5, 10, 20])
    axis.set(ylim=(0, 1.12), ylabel="dimensions per feature  D* = m / ‖W‖²")
    axis.legend(loc="lower left")
    return figure


def _density_axis(axis: Axes, ticks: list[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("1 / (1 − S): sparser to the right")


def draw_geometry(data: Mapping[str, Any]) -> Canvas:
    """D_i of the learned features by density, over graphs of some of the models."""
    count = len(data["graphs"])
    figure, axes = subplots(2, count, 4.9, height_ratios=(2, 1))
    axis = figure.add_subplot(axes[0, 0].get_gridspec()[0, :])
    for panel in axes.flat:
        panel.axis("off")
    where = np.log10(1 / np.array(data["density"]))
    for name, fraction in FRACTIONS.items():
        axis.axhline(float(fraction), color="0.65", linewidth=0.7, zorder=1)
        shift = {"pentagon": 4, "square antiprism": -3}.get(name, 0)  # too close to each other
        axis.annotate(
            f"{fraction} {name}",
            (1, float(fraction)),
            xycoords=("axes fraction", "data"),
            xytext=(4, shift),
            textcoords="offset points",
            va="center",
            color=COLOURS[name],
        )
    axis.plot(
        10**where,
        data["dimensions_per_feature"],
        "--",
        color="0.6",
        label="D* = m / ‖W‖²",
        zorder=2,
    )
    gap = np.diff(where)
    width = 0.8 * np.minimum(np.append(gap, gap[-1]), np.insert(gap, 0, gap[0])).clip(max=0.06)
    for x, wide, features in zip(where, width, data["features"], strict=True):
        D = np.array(features["dimensionality"])
        spread = x + wide * (np.arange(len(D)) / max(len(D) - 1, 1) - 0.5)
        axis.scatter(10**spread, D, s=4, c=_colours(features["names"]), linewidths=0, zorder=3)
    axis.plot([], [], "o", color=OTHER, markersize=2.5, label="no polytope by itself")
    _density_axis(axis, [1, 2, 3, 5, 10])
    axis.set(ylim=(0.2, 1.03), ylabel="dimensionality  $D_i$  of a learned feature")
    axis.legend(loc="upper right")
    for panel, content, density in zip(axes[1], data["graphs"], data["graph_density"], strict=True):
        _draw_graph(panel, content)
        panel.set_title(f"1/(1 − S) = {1 / density:.2g}")
    return figure


def _colours(names: list[str]) -> list[str]:
    return [COLOURS.get(name, OTHER) for name in names]


def _draw_graph(panel: Axes, content: Mapping[str, Any]) -> None:
    """Draw a feature-geometry graph, its edges as strong as |W_i·W_j|."""
    drawing: nx.Graph[int] = nx.Graph()
    drawing.add_nodes_from(range(len(content["names"])))
    drawing.add_weighted_edges_from(content["edges"])
    place = _layout(drawing)
    for i, j, weight in content["edges"]:
        ends = np.stack([place[i], place[j]], axis=1)
        panel.plot(*ends, color="0.45", linewidth=min(weight, 1.0), zorder=1)
    for i, colour in enumerate(_colours(content["names"])):
        panel.plot(*place[i], "o", color=colour, markersize=2.6, markeredgewidth=0)
    panel.set_aspect("equal")


def _layout(drawing: nx.Graph) -> dict[int, Array]:
    """Place the connected groups side by side in rows, the largest first."""
    groups = sorted(nx.connected_components(drawing), key=lambda group: (-len(group), min(group)))
    radii = [0.55 * np.sqrt(len(group)) for group in groups]
    limit = np.sqrt(sum((2 * radius + 1) ** 2 for radius in radii))
    place: dict[int, Array] = {}
    x = y = row = 0.0
    for group, radius in zip(groups, radii, strict=True):
        if x + radius > limit:
            x, y, row = 0.0, y - row, 0.0
        row = max(row, 2 * radius + 1)
        center = (x + radius, y - radius)
        part = drawing.subgraph(group)
        place |= nx.spring_layout(part, scale=radius, center=center, seed=0)
        x += 2 * radius + 1
    return place


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="dimensions_per_feature",
            title="Dimensions per feature stick at one and at one half",
            caption="D* = m/‖W‖_F² of one model per density, all features equally important. "
            "Circles: the values that the authors' notebook saved for the same recipe.",
            original="section 'The Geometry of Superposition', dimensions per feature",
            draw=draw_dimensions,
        ),
        Figure(
            name="feature_geometry",
            title="Features take the fractions of a dimension that polytopes have",
            caption="Top: D_i of every learned feature (‖W_i‖ > 0.5), n = 400, m = 30, spread "
            "sideways within its model. Bottom: graphs of four models, edges as wide as |W_i·W_j|, "
            "both coloured "
            "by the polytope that a group of interfering features forms, by its Gram matrix.",
            original="section 'The Geometry of Superposition', feature dimensionality and feature "
            "geometry graphs",
            draw=draw_geometry,
        ),
    ),
)
