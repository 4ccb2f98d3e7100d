"""D1 and D2: superposition as a phase change, in theory and in training.

Section "Superposition as a Phase Change": n = 2, m = 1 and n = 3, m = 2, the last ("extra")
feature of relative importance r from 0.1 to 10, density p from 1 to 0.01. Ten models per cell, the
worst is dropped and the others averaged, as in the paper. A finer cut along r = 1 shows why the
apex is blurred: with biases, which the theory's antipodal pair lacks, a weaker pair wins there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from papers.toy_superposition.geometry import gram, interference, norms
from papers.toy_superposition.inputs import Batch, Supports, independent_supports
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.phase_theory import (
    TRIPLE_POINT,
    best_biased_pair,
    boundaries,
    candidate_losses,
    candidates,
    near_boundary,
    pair_boundary,
    phases,
)
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, PALETTE, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

IMPORTANCE, DENSITY = (0.1, 10.0), (0.01, 1.0)
RESTARTS = 10  # per cell of the maps, as in the paper
CUT_RESTARTS = 40  # the cut is about the optimum, which ten restarts miss in some cells
INITIAL_STD = 0.3  # small, so that few models settle before they know which features share
NODES = {2: 24, 3: 20}  # Gauss-Legendre nodes per feature, by the number of features
CUT = (0.4, 1.0)  # densities of the cut along r = 1, around the theory's apex at 4/7
BAND = 0.1  # decades around the theory's boundaries where a cell may have either phase
APEX_RADIUS = 0.25  # decades around the triple point that count as its neighbourhood
SUPERPOSED, DEDICATED, ABSENT = PALETTE[4], PALETTE[0], "#E6E6E6"


class Parameters(Config):
    """What a profile sets."""

    recipe: Recipe
    cells_two: int
    """Points per axis of the map of n = 2; the grid includes its corners, and r = 1 if odd."""
    cells_three: int
    cells_cut: int
    per_support: int


@dataclass(frozen=True)
class Quadrature:
    """Independent features as a product of the point 0 and Gauss-Legendre nodes on [0, 1].

    An `Inputs` without random numbers; the kinks of the ReLU leave an error of the loss below
    0.3%, alike for all models of a cell.
    """

    density: Float[Tensor, " groups"]
    n: int

    @property
    def groups(self) -> int:
        """How many densities there are."""
        return len(self.density)

    def sample(self, generator: torch.Generator) -> Batch:
        """Return the nodes and their weights, always the same, on the generator's device."""
        position, weight = np.polynomial.legendre.leggauss(NODES[self.n])
        points = torch.tensor([0, *(position + 1) / 2]).double()
        share = torch.tensor([0, *weight / 2]) * self.density.double()[:, None]
        share[:, 0] = 1 - self.density
        x = torch.cartesian_prod(*[points] * self.n).T.float().to(generator.device)
        index = torch.cartesian_prod(*[torch.arange(len(points))] * self.n)
        weights = share[:, index].prod(-1).float().to(generator.device)
        return Batch(x.expand(self.groups, -1, -1), weights)


def train_cells(
    n: int,
    importance: Float[Array, " r"],
    density: Float[Array, " p"],
    restarts: int,
    config: Parameters,
    run: Run,
    label: str,
) -> tuple[Float[Array, "p r kept m n"], Float[Array, "p r"]]:
    """Train all cells at once; return W of all but the worst, and the exact loss of the best.

    Models come in order of the loss by which they were ranked, the best first.
    """
    p = torch.tensor(density, dtype=torch.float32)
    supports, probability = independent_supports(p[:, None].expand(-1, n))
    weights = torch.ones(len(density), len(importance), restarts, n)
    weights[..., -1] = torch.tensor(importance, dtype=torch.float32)[:, None]
    start = create(
        Architecture(),
        instances=weights[..., 0].numel(),
        n=n,
        m=n - 1,
        generator=generator(run.seed, 0, run.device),
        importance=weights.view(-1, n),
        std=INITIAL_STD,
    )
    inputs = Supports(supports, probability, config.per_support)
    trained = train(start, inputs, config.recipe, run.seed, label)
    cells = (len(density), len(importance))
    loss = score(trained, Quadrature(p, n), 1, run.seed, stream=2)
    ranked = best(loss, cells[0] * cells[1], restarts - 1)
    kept = trained.select(ranked)
    return (
        kept.W.view(*cells, restarts - 1, n - 1, n).cpu().numpy(),
        loss[ranked[:: restarts - 1]].view(cells).cpu().numpy(),
    )


def run(config: Parameters, run: Run) -> Arrays:
    """Train the maps of two and three features, and the cut along r = 1."""
    arrays: Arrays = {}
    two, three = _axis(DENSITY, config.cells_two), _axis(DENSITY, config.cells_three)
    cut = np.linspace(*CUT, config.cells_cut)
    for name, n, importance, density, restarts in (
        ("two", 2, _axis(IMPORTANCE, len(two)), two, RESTARTS),
        ("three", 3, _axis(IMPORTANCE, len(three)), three, RESTARTS),
        ("cut", 2, np.ones(1), cut, CUT_RESTARTS),
    ):
        label = f"phase change, {name}"
        W, loss = train_cells(n, importance, density, restarts, config, run, label)
        arrays |= {
            f"{name}_importance": importance,
            f"{name}_density": density,
            f"{name}_W": W,
            f"{name}_loss": loss,
        }
    return arrays


def _axis(limits: tuple[float, float], points: int) -> Float[Array, " points"]:
    """Return evenly spaced powers of ten; the middle of -1, 1 is an exact 0."""
    low, high = np.log10(limits)
    return 10 ** np.linspace(low, high, points)


def nearest_candidates(W: Float[Array, "*models m n"]) -> Int[Array, "*models"]:
    """Return the index of the candidate whose WᵀW is nearest in Frobenius norm.

    The first two of three features are alike, so a candidate may exchange them.
    """
    n = W.shape[-1]
    found = gram(W)
    swap = [1, 0, 2] if n == 3 else [0, 1]
    distances = [
        np.minimum(
            ((found - candidate.gram) ** 2).sum((-1, -2)),
            ((found - candidate.gram[np.ix_(swap, swap)]) ** 2).sum((-1, -2)),
        )
        for candidate in candidates(n)
    ]
    return np.stack(distances).argmin(0)


def commonest(index: Int[Array, "*cells models"]) -> Int[Array, "*cells"]:
    """Return the most frequent value along the last axis; of equals the smallest."""
    counts = np.stack([(index == value).sum(-1) for value in range(index.max() + 1)])
    return counts.argmax(0)


def extra_feature(
    W: Float[Array, "*cells models m n"],
) -> tuple[Float[Array, "*cells"], Float[Array, "*cells"]]:
    """Return the last feature's mean norm and mean interference.

    A feature that is absent has no direction to interfere along, so the interference is averaged
    with the norm as weight.
    """
    norm, other = norms(W)[..., -1], interference(W)[..., -1]
    total = np.asarray(norm.sum(-1))
    weighted = np.asarray((norm * other).sum(-1))
    return np.asarray(norm.mean(-1)), np.divide(
        weighted, total, out=np.zeros(total.shape), where=total > 0
    )


def agreement(agrees: Array, where: Array) -> float:
    """Return the share of `where` that agrees; zero if there is nothing."""
    return float(agrees[where].mean()) if where.any() else 0.0


def _map(name: str, n: int, arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and plotted numbers of one phase diagram."""
    W = arrays[f"{name}_W"]
    importance, density = arrays[f"{name}_importance"], arrays[f"{name}_density"]
    r, p = np.meshgrid(importance, density)
    theory = phases(n, r, p)
    each = nearest_candidates(W)
    cell = commonest(each)
    outside = ~near_boundary(n, r, p, BAND)
    apex = np.hypot(np.log10(r), np.log10(p / TRIPLE_POINT)) < APEX_RADIUS
    ratio = arrays[f"{name}_loss"] / candidate_losses(n, r, p).min(-1)
    norm, other = extra_feature(W)
    best_norm, best_other = extra_feature(W[:, :, :1])
    metrics = {
        "agreement_of_average": agreement(cell == theory, outside),
        "agreement_of_models": agreement(each == theory[..., None], outside),
        "agreement_of_best": agreement(each[..., 0] == theory, outside),
        "agreement_at_apex": agreement(each[..., 0] == theory, apex),
        "share_outside_band": outside.mean(),
        "agreement_of_average_by_phase": [
            agreement(cell == theory, outside & (theory == phase))
            for phase in range(len(candidates(n)))
        ],
        "loss_over_theory_max": ratio.max(),
        "loss_over_theory_min": ratio.min(),
    }
    plotted = {
        "importance": importance,
        "density": density,
        "norm": norm,
        "interference": other,
        "best_norm": best_norm,
        "best_interference": best_other,
        "loss_over_theory": ratio,
        "outline": boundaries(n, IMPORTANCE, DENSITY),
    }
    return metrics, plotted


def boundary_mismatch(n: int) -> float:
    """Return the largest relative difference of the two lowest losses along the inner outlines.

    Zero up to rounding where the closed-form boundaries are right.
    """
    vertices = np.concatenate(list(boundaries(n, IMPORTANCE, DENSITY).values()))
    r, p = vertices.T
    inner = (p > DENSITY[0]) & (p < DENSITY[1]) & (r > IMPORTANCE[0]) & (r < IMPORTANCE[1])
    lowest = np.sort(candidate_losses(n, r[inner], p[inner]))
    return float((lowest[:, 1] / lowest[:, 0] - 1).max())


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Compare every cell with the theory, and the cut along r = 1 with the best biased pair."""
    two, two_plot = _map("two", 2, arrays)
    three, three_plot = _map("three", 3, arrays)
    density, W = arrays["cut_density"], arrays["cut_W"][:, 0]
    theory = candidate_losses(2, np.array(1.0), density).min(-1)
    pair_loss = np.array([best_biased_pair(p)[2] for p in density])
    loss = arrays["cut_loss"][:, 0]
    above = (density > TRIPLE_POINT) & (density < 1)
    metrics = {
        "two": two,
        "three": three,
        "theory": {
            "two_pair_boundary": pair_boundary(np.array([0.1, 0.5, 1, 2, 10])),
            "three_first_boundary": TRIPLE_POINT,
            "boundary_mismatch": max(boundary_mismatch(2), boundary_mismatch(3)),
        },
        "apex": {
            "biased_pair_over_theory_at_triple_point": best_biased_pair(TRIPLE_POINT)[2]
            / candidate_losses(2, np.array(1.0), np.array(TRIPLE_POINT)).min(),
            "biased_pair_over_theory_above": (pair_loss / theory)[above].max(initial=0.0),
            "trained_over_biased_pair": loss / pair_loss,
            "trained_pair_error_below": np.abs(loss / pair_loss - 1)[density < TRIPLE_POINT].max(
                initial=0.0
            ),
            "antipodal_share_above": agreement(np.prod(W[:, 0, 0], axis=-1) < 0, above),
        },
    }
    cut = {
        "density": density,
        "trained": loss / theory,
        "biased_pair": pair_loss / theory,
        "triple_point": TRIPLE_POINT,
        "importance": two_plot["importance"],
        "map_density": two_plot["density"],
        "loss_over_theory": two_plot["loss_over_theory"],
        "outline": two_plot["outline"],
    }
    return Evaluation(
        metrics=metrics,
        figures={
            "phase_change_two_features": two_plot,
            "phase_change_three_features": three_plot,
            "phase_change_apex": cut,
        },
    )


def colours(
    norm: Float[Array, "*cells"], other: Float[Array, "*cells"]
) -> Float[Array, "*cells 3"]:
    """Return the two-dimensional colour map: grey to saturated by norm, blue to red by other."""
    from matplotlib.colors import to_rgb

    absent, dedicated, superposed = (np.array(to_rgb(c)) for c in (ABSENT, DEDICATED, SUPERPOSED))
    norm, other = (np.clip(value, 0, 1)[..., None] for value in (norm, other))
    return (1 - norm) * absent + norm * ((1 - other) * dedicated + other * superposed)


def _show(
    axis: Axes, data: Mapping[str, Any], rgb: Float[Array, "p r *colour"], **options: Any
) -> Any:
    """Draw a map over (r, p), dense at the top, and the theory's boundaries on it."""
    mesh = axis.pcolormesh(
        data["importance"], data["density"], rgb, shading="nearest", rasterized=True, **options
    )
    for outline in data["outline"].values():
        axis.plot(*np.transpose(outline), color="black", linewidth=0.6)
    _frame(axis)
    return mesh


def _frame(axis: Axes) -> None:
    axis.set(xscale="log", yscale="log", xlim=IMPORTANCE, ylim=DENSITY)
    axis.set(xticks=[0.1, 1, 10], xticklabels=["0.1", "1", "10"])
    axis.set(yticks=[0.01, 0.1, 1], yticklabels=["0.01", "0.1", "1"])
    axis.grid(False)


def _draw_map(data: Mapping[str, Any], labels: Mapping[str, tuple[float, float, str]]) -> Canvas:
    """Theory, average of nine and best of ten, with the colour map as their legend."""
    from matplotlib.colors import to_rgb

    figure, axes = subplots(1, 4, 1.75, width_ratios=[1, 1, 1, 0.55])
    theory, average, chosen, legend = axes[0]
    fill = {"ignore extra": ABSENT, "pair with extra": SUPERPOSED}
    for name, outline in data["outline"].items():
        colour = fill.get(name, DEDICATED)
        theory.fill(*np.transpose(outline), facecolor=colour, edgecolor="black", linewidth=0.7)
        x, y, text = labels[name]
        dark = np.mean(to_rgb(colour)) < 0.8
        theory.text(
            x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black"
        )
    _frame(theory)
    _show(average, data, colours(np.array(data["norm"]), np.array(data["interference"])))
    _show(chosen, data, colours(np.array(data["best_norm"]), np.array(data["best_interference"])))
    for axis, title in zip(axes[0], ("theory", "mean of 9 of 10", "best of 10"), strict=False):
        axis.set_title(title)
        axis.set_box_aspect(1)
    average.set_xlabel("relative importance r of the extra feature")
    theory.set_ylabel("feature density p = 1 − S")
    for axis in (average, chosen):
        axis.set_yticklabels([])
    level = np.linspace(0, 1, 41)
    image = colours(*np.meshgrid(level, level))
    legend.imshow(image, origin="lower", extent=(0, 1, 0, 1))
    legend.set(xticks=[0, 1], yticks=[0, 1], xlabel="norm ‖W‖", ylabel="interference")
    legend.set_title("extra feature", fontsize=7)
    legend.grid(False)
    panel_labels(axes[0, :3])
    return figure


def draw_two(data: Mapping[str, Any]) -> Canvas:
    """The map of two features in one dimension."""
    labels = {
        "ignore extra": (0.3, 0.67, "extra\nignored"),
        "ignore first": (3.3, 0.67, "first\nignored"),
        "pair with extra": (1, 0.06, "antipodal pair"),
    }
    return _draw_map(data, labels)


def draw_three(data: Mapping[str, Any]) -> Canvas:
    """The map of three features in two dimensions."""
    labels = {
        "ignore extra": (0.3, 0.67, "W ⊥ [0,0,1]"),
        "ignore first": (3.3, 0.75, "W ⊥ [1,0,0]"),
        "pair with extra": (0.33, 0.06, "W ⊥ [0,1,1]"),
        "pair of others": (3.3, 0.06, "W ⊥ [1,1,0]"),
    }
    return _draw_map(data, labels)


def draw_apex(data: Mapping[str, Any]) -> Canvas:
    """Loss of the best model over the theory's: the map, and the cut along r = 1."""
    figure, axes = subplots(1, 2, 2.4, width_ratios=[1, 1.25])
    area, cut = axes[0]
    ratio = np.array(data["loss_over_theory"])
    shown = {**data, "density": data["map_density"]}
    mesh = _show(area, shown, ratio, cmap=DIVERGING, vmin=0.85, vmax=1.15)
    area.set(xlabel="relative importance r", ylabel="feature density p")
    area.set_box_aspect(1)
    figure.colorbar(mesh, ax=area, label="trained loss / theory", shrink=0.8)
    cut.plot(data["density"], data["biased_pair"], color=PALETTE[0], label="best pair with biases")
    cut.plot(data["density"], data["trained"], "o", color=PALETTE[4], label="trained, best of 40")
    cut.axhline(1, color="0.4", linewidth=0.8)
    cut.axvline(data["triple_point"], color="black", linewidth=0.7, linestyle="--")
    cut.annotate("theory's apex, p = 4/7", (data["triple_point"] + 0.01, 1.012), fontsize=6.5)
    cut.set(xlabel="feature density p, at r = 1", ylabel="loss / theory", ylim=(0.84, 1.03))
    cut.legend(loc="lower right", handlelength=1.2)
    panel_labels(axes)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="phase_change_two_features",
            title="Superposition is a phase change: two features, one dimension",
            caption="The extra feature's norm and interference by its importance and the density. "
            "Lines: where two solutions of the theory lose the same. Mean: of ten models per "
            "cell without the worst, as in the paper.",
            original="section 'Superposition as a Phase Change', n = 2, m = 1",
            draw=draw_two,
        ),
        Figure(
            name="phase_change_three_features",
            title="Superposition is a phase change: three features, two dimensions",
            caption="As for two features. Many restarts pair the extra feature where pairing the "
            "other two would be better, so that the mean is more mixed than the best.",
            original="section 'Superposition as a Phase Change', n = 3, m = 2",
            draw=draw_three,
        ),
        Figure(
            name="phase_change_apex",
            title="Why the apex is blurred: a pair with biases beats the theory's solutions",
            caption="Exact loss of the best model (of 10 per cell, of 40 on the cut) over the "
            "lowest of the theory's three, n = 2, m = 1. Line: the antipodal pair of the best norm "
            "and bias.",
            original="section 'Superposition as a Phase Change', apex of the first diagram",
            draw=draw_apex,
        ),
    ),
)
