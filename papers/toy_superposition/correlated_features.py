"""G: correlated features become orthogonal, neighbours or one; anticorrelated ones opposite.

Section "Correlated Features": sets of features that are active together (correlated; their values
are independent) or one at a time (anticorrelated). G1, G2: two pairs in two dimensions. G3: three
correlated pairs in two dimensions. G4: two sets of ten in ten dimensions. G5: three correlated
pairs from sparse to dense, which collapse to their principal components. Importance is 1, and the
supports, a product over the sets, are enumerated.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from papers.toy_superposition.geometry import angular_gaps, cosines, gram, norms
from papers.toy_superposition.inputs import Supports
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import Recipe, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, FULL_WIDTH, PALETTE, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

DENSITIES = (0.1, 0.05, 0.02)  # the probability that a set is active
SHOWN = DENSITIES.index(0.05)
LARGE_DENSITIES = (0.1, 0.02)
LARGE_SET = 10
COLLAPSE_DENSITIES = (0.6, 0.4, 0.3, 0.18, 0.12, 0.08, 0.05, 0.03)
PRESENT = 0.5  # ‖W_i‖ above which a feature counts as represented
COLLAPSED = 0.05  # share of a pair's squared norm along its second principal component
PANELS = 5


class Parameters(Config):
    """What a profile sets."""

    recipe: Recipe
    restarts: int
    per_support: int
    batches: int  # of the evaluations: near p = 0.4 two solutions are 0.2% apart


def correlated(density: Float[Tensor, " groups"], size: int, sets: int, each: int) -> Supports:
    """Return sets of `size` features that are all active, with probability `density`, or none.

    `each` inputs are drawn per support.
    """
    patterns = torch.tensor([False, True])[:, None].expand(2, size)
    return _independent_sets(patterns, torch.stack([1 - density, density], dim=1), sets, each)


def anticorrelated(density: Float[Tensor, " groups"], size: int, sets: int, each: int) -> Supports:
    """Return sets of which, with probability `density`, exactly one of `size` is active."""
    patterns = torch.cat([torch.zeros(1, size), torch.eye(size)]).bool()
    one = (density / size)[:, None].expand(-1, size)
    return _independent_sets(patterns, torch.cat([1 - density[:, None], one], dim=1), sets, each)


def _independent_sets(
    patterns: Bool[Tensor, "states size"],
    probability: Float[Tensor, "groups states"],
    sets: int,
    each: int,
) -> Supports:
    """Combine `sets` independent copies of one set, which has `states` patterns of activity."""
    states = torch.tensor(list(itertools.product(range(len(patterns)), repeat=sets)))
    return Supports(patterns[states].flatten(1), probability[:, states].prod(-1), each)


def run(config: Parameters, run: Run) -> Arrays:
    """Train all five experiments; each keeps all restarts, the best first."""
    density, each = torch.tensor(DENSITIES), config.per_support
    arrays = {}
    for name, inputs, m in (
        ("pairs", correlated(density, 2, 2, each), 2),
        ("opposites", anticorrelated(density, 2, 2, each), 2),
        ("neighbours", correlated(density, 2, 3, each), 2),
        ("bases", correlated(torch.tensor(LARGE_DENSITIES), LARGE_SET, 2, each), LARGE_SET),
        ("collapse", correlated(torch.tensor(COLLAPSE_DENSITIES), 2, 3, each), 2),
    ):
        arrays[f"{name}_W"], arrays[f"{name}_loss"] = _fit(name, inputs, m, config, run)
    arrays["bases_W"] = arrays["bases_W"][:, :1]
    return arrays


def _fit(
    label: str, inputs: Supports, m: int, config: Parameters, run: Run
) -> tuple[Float[Array, "groups restarts m n"], Float[Array, "groups restarts"]]:
    """Train the restarts of every group; return them ranked, with losses on other inputs."""
    groups, n = inputs.groups, inputs.supports.shape[1]
    start = create(
        Architecture(),
        instances=groups * config.restarts,
        n=n,
        m=m,
        generator=generator(run.seed, 0, run.device),
    )
    trained = train(start, inputs, config.recipe, run.seed, label)
    rank = (
        score(trained, inputs, config.batches, run.seed, stream=2).view(groups, -1).argsort(dim=1)
    )
    loss = (
        score(trained, inputs, config.batches, run.seed, stream=3).view(groups, -1).gather(1, rank)
    )
    W = trained.W.view(groups, -1, m, n)
    ranked = W.gather(1, rank[:, :, None, None].expand_as(W))
    return ranked.cpu().numpy(), loss.cpu().numpy()


def partner_cosines(W: Float[Array, "*models m n"]) -> Float[Array, "*models pairs"]:
    """Return the cosine between the two features of every pair (0 and 1, 2 and 3, ...)."""
    cosine = cosines(W)
    first = np.arange(0, W.shape[-1], 2)
    pairs: Array = cosine[..., first, first + 1]
    return pairs


def partners_adjacent(W: Float[Array, "*models 2 n"]) -> Bool[Array, "*models"]:
    """Return whether no other feature lies between the two of any pair.

    In the order of their angles around the circle the pair takes two neighbouring places.
    """
    n = W.shape[-1]
    place = np.arctan2(W[..., 1, :], W[..., 0, :]).argsort(-1).argsort(-1)
    steps = (place[..., 0::2] - place[..., 1::2]) % n
    return np.asarray(np.isin(steps, [1, n - 1]).all(-1))


def second_component(W: Float[Array, "*models m n"]) -> Float[Array, "*models pairs"]:
    """Return the share of each pair's squared norm that lies along its second component.

    Two features that are active together, with values alike, have the principal components
    (x₁+x₂)/√2 and (x₁-x₂)/√2. The share is ‖W₁-W₂‖²/2 over ‖W₁‖²+‖W₂‖²: 0 when the model knows
    the pair's sum only, 1/2 when the two are orthogonal and equally long. An absent pair has 1/2.
    """
    first, second = W[..., 0::2].astype(np.float64), W[..., 1::2].astype(np.float64)
    along = ((first - second) ** 2).sum(-2) / 2
    total = (first**2).sum(-2) + (second**2).sum(-2)
    return np.divide(along, total, out=np.full(total.shape, 0.5), where=total > 1e-12)


def _all_present(W: Float[Array, "*models m n"]) -> Bool[Array, "*models"]:
    return np.asarray((norms(W) > PRESENT).all(-1))


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Measure how each kind of set is laid out, in the best restart and over all of them."""
    pairs, opposites, neighbours = (
        arrays[f"{name}_W"] for name in ("pairs", "opposites", "neighbours")
    )
    orthogonal = np.abs(partner_cosines(pairs)).max(-1)
    opposite = partner_cosines(opposites).max(-1)
    adjacent = partners_adjacent(neighbours) & _all_present(neighbours)
    # Two sets, each with one active member of E[x²] = 1/3: what a model of nothing would lose.
    nothing = np.array(DENSITIES) * 2 / 3
    sparse = np.array(DENSITIES) <= 0.05

    grams = gram(arrays["bases_W"][:, 0])
    own = np.kron(np.eye(2, dtype=bool), np.ones((LARGE_SET, LARGE_SET), dtype=bool))
    off = own & ~np.eye(2 * LARGE_SET, dtype=bool)
    collapse = arrays["collapse_W"]
    best = collapse[:, 0]
    second = second_component(collapse)
    collapsed = (second < COLLAPSED).sum(-1)

    ranks = np.linspace(0, config.restarts - 1, PANELS).round().astype(int)
    return Evaluation(
        metrics={
            "pairs": {
                "best_max_abs_cosine": orthogonal[:, 0],
                "share_orthogonal": ((orthogonal < 0.1) & _all_present(pairs)).mean(1),
            },
            "opposites": {
                "best_max_cosine": opposite[:, 0],
                "best_relative_loss": arrays["opposites_loss"][:, 0] / nothing,
                "best_norms": norms(opposites[:, 0]).ravel(),
                "share_opposite": ((opposite < -0.95) & _all_present(opposites)).mean(1),
            },
            "neighbours": {
                "best_adjacent": adjacent[sparse, 0].mean(),
                "share_adjacent": adjacent[sparse].mean(1),
                "best_gap_error_degrees": np.abs(angular_gaps(neighbours[sparse, 0]) - 60).max(-1),
            },
            "bases": {
                "represented": (norms(arrays["bases_W"][:, 0]) > PRESENT).sum(-1),
                "max_within": [np.abs(product[off]).max() for product in grams],
                "rms_across": [np.sqrt((product[~own] ** 2).mean()) for product in grams],
            },
            "collapse": {
                "sets": collapsed[:, 0],
                "median_sets": np.median(collapsed, axis=1),
                "sets_by_density": {
                    f"{100 * p:.0f}%": count
                    for p, count in zip(COLLAPSE_DENSITIES, collapsed[:, 0], strict=True)
                },
                # Of all squared norm, when densest: 1 if W knows the sums of the pairs only.
                "principal_share_when_dense": 1
                - (second[0, 0] * (norms(best[0]) ** 2).reshape(-1, 2).sum(-1)).sum()
                / (norms(best[0]) ** 2).sum(),
            },
        },
        figures={
            "correlated_features": {
                "W": [list(W[SHOWN, ranks]) for W in (pairs, opposites, neighbours)],
                "rank": ranks + 1,
                "restarts": config.restarts,
            },
            "local_orthogonal_bases": {"density": LARGE_DENSITIES, "gram": grams},
            "collapse_to_principal_components": {
                "density": COLLAPSE_DENSITIES,
                "W": best,
                "collapsed": collapsed[:, 0],
            },
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """One row per kind of correlation, five restarts from the best to the worst."""
    rows = len(data["W"])
    figure, axes = subplots(
        rows, PANELS, FULL_WIDTH * rows / PANELS + 0.45, sharex=True, sharey=True
    )
    names = ("correlated\npairs", "anticorrelated\npairs", "three corre-\nlated pairs")
    for row, models, name in zip(axes, data["W"], names, strict=True):
        for axis, W in zip(row, models, strict=True):
            _draw_features(axis, W)
        row[0].set_ylabel(name)
    for axis, rank in zip(axes[0], data["rank"], strict=True):
        axis.set_title(f"rank {rank} of {data['restarts']}")
    _legend(figure, axes[-1, 0])
    return figure


def draw_bases(data: Mapping[str, Any]) -> Canvas:
    """Heat maps of WᵀW, one per density; lines divide the two sets."""
    figure, axes = subplots(1, len(data["density"]), 2.6, sharey=True)
    for axis, product, density in zip(axes.flat, data["gram"], data["density"], strict=True):
        image = axis.imshow(product, cmap=DIVERGING, vmin=-1, vmax=1)
        for line in (axis.axhline, axis.axvline):
            line(LARGE_SET - 0.5, color="0.3", linewidth=0.7)
        middles, sets = [(LARGE_SET - 1) / 2, 1.5 * LARGE_SET - 0.5], ["set 1", "set 2"]
        axis.set_xticks(middles, sets)
        axis.set_yticks(middles, sets, rotation=90, va="center")
        axis.tick_params(length=0)
        axis.set(title=f"sets active {100 * density:g}% of the time", xlabel="features")
        axis.grid(False)
    axes[0, 0].set_ylabel("features")
    panel_labels(axes)
    figure.colorbar(image, ax=list(axes.flat), label="WᵀW", shrink=0.85)
    return figure


def draw_collapse(data: Mapping[str, Any]) -> Canvas:
    """The best solution at every density, dense to sparse."""
    columns = 4
    rows = -(-len(data["W"]) // columns)
    figure, axes = subplots(
        rows, columns, rows * FULL_WIDTH / columns * 1.12 + 0.3, sharex=True, sharey=True
    )
    for axis, W, density, collapsed in zip(
        axes.flat, data["W"], data["density"], data["collapsed"], strict=True
    ):
        _draw_features(axis, W)
        axis.set_title(f"p = {density:g}\n{collapsed} of 3 collapsed")
    _legend(figure, axes[-1, 0])
    return figure


def _draw_features(axis: Axes, W: list[list[float]]) -> None:
    """Draw the columns of W as spokes, coloured by pair; the second of a pair as a ring."""
    for i, (x, y) in enumerate(np.transpose(W)):
        color = PALETTE[i // 2]
        axis.plot([0, x], [0, y], color=color, linewidth=1.2)
        style = {"markersize": 3.0} if i % 2 == 0 else {"markersize": 6.0, "fillstyle": "none"}
        axis.plot(x, y, "o", color=color, label=f"pair {i // 2 + 1}, {'ab'[i % 2]}", **style)
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal", xticks=[-1, 0, 1])
    axis.set(yticks=[-1, 0, 1])


def _legend(figure: Canvas, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, columnspacing=1.2)


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="correlated_features",
            title="Correlated features become orthogonal or neighbours, anticorrelated ones "
            "opposite",
            caption="Columns of W, one colour per pair, m = 2, each pair active 5% of the time. "
            "Top: two correlated pairs; middle: two anticorrelated pairs; bottom: three "
            "correlated pairs. Five restarts of each, equally spaced from the lowest loss to the "
            "highest.",
            original="section 'Correlated and Anticorrelated Features', 'Organization'",
            draw=draw,
        ),
        Figure(
            name="local_orthogonal_bases",
            title="Features of one correlated set are orthogonal, those of two sets are not",
            caption="WᵀW of the best restart, two correlated sets of ten features in ten "
            "dimensions. Each diagonal block alone is nearly an identity.",
            original="section 'Local Almost-Orthogonal Bases'",
            draw=draw_bases,
        ),
        Figure(
            name="collapse_to_principal_components",
            title="Made denser, correlated pairs collapse one by one to their principal component",
            caption="Best of several restarts at eight densities, three correlated pairs in two "
            "dimensions. A pair has collapsed when less than 5% of its squared norm lies along "
            "its second principal component.",
            original="section 'Collapsing of Correlated Features'",
            draw=draw_collapse,
        ),
    ),
)
