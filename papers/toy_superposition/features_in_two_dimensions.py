"""A: five features in two dimensions, from dense to sparse.

Introduction of the paper and first example of its notebook: n = 5, m = 2, importance 0.9^i. As
features become sparse the model first keeps the two most important ones, then antipodal pairs,
then a pentagon. The paper's three sparsities, and the notebook's ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from papers.toy_superposition.geometry import angular_gaps, cosines, norms
from papers.toy_superposition.inputs import Supports, independent_supports
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import FULL_WIDTH, PALETTE, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

N, M = 5, 2
DENSITIES = (1.0, 0.2, 0.1)  # the paper's sparsities 0, 80% and 90%
NOTEBOOK_DENSITIES = tuple(20 ** (-k / 9) for k in range(10))
ABSENT = 0.3  # ‖W_i‖ below which a feature counts as not represented


class Parameters(Config):
    """What a profile sets."""

    recipe: Recipe
    restarts: int
    per_support: int


def run(config: Parameters, run: Run) -> Arrays:
    """Train `restarts` models per density and keep the one with the lowest expected loss."""
    density = torch.tensor(DENSITIES + NOTEBOOK_DENSITIES)
    supports, probability = independent_supports(density[:, None].expand(-1, N))
    inputs = Supports(supports, probability, config.per_support)
    importance = 0.9 ** torch.arange(N)
    start = create(
        Architecture(),
        instances=len(density) * config.restarts,
        n=N,
        m=M,
        generator=generator(run.seed, 0, run.device),
        importance=importance,
    )
    trained = train(start, inputs, config.recipe, run.seed, "two dimensions")
    winners = best(score(trained, inputs, 50, run.seed, stream=2), inputs.groups)
    chosen = trained.select(winners)
    losses = score(chosen, inputs, 50, run.seed, stream=3)
    return {
        "density": density.numpy(),
        "W": chosen.W.cpu().numpy(),
        "b": chosen.b.cpu().numpy(),
        "loss": losses.cpu().numpy(),
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Count features and read off angles at the paper's three sparsities."""
    W, present = arrays["W"], norms(arrays["W"]) > ABSENT
    cosine = cosines(W)
    dense, pairs, pentagon = range(len(DENSITIES))
    both = present[:, :, None] & present[:, None, :] & ~np.eye(N, dtype=bool)
    gaps = angular_gaps(W[pentagon])
    return Evaluation(
        metrics={
            "represented": present[: len(DENSITIES)].sum(1),
            "dense_max_abs_cosine": np.abs(cosine[dense][both[dense]]).max(initial=0.0),
            "antipodal_pairs_at_80": (cosine[pairs][both[pairs]] < -0.95).sum() // 2,
            "pentagon_gap_error_degrees": np.abs(gaps - 72).max(),
        },
        figures={
            "features_in_two_dimensions": {"sparsity": 1 - arrays["density"][:3], "W": W[:3]},
            "features_in_two_dimensions_notebook": {
                "sparsity": 1 - arrays["density"][3:],
                "W": W[3:],
            },
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """One panel per sparsity: the columns of W as arrows, coloured by importance."""
    columns = min(5, len(data["W"]))
    rows = -(-len(data["W"]) // columns)
    height = rows * FULL_WIDTH / columns * 1.12
    figure, axes = subplots(rows, columns, height, sharex=True, sharey=True)
    for axis, W, sparsity in zip(axes.flat, data["W"], data["sparsity"], strict=True):
        for i, (x, y) in enumerate(np.transpose(W)):
            axis.plot([0, x], [0, y], color=PALETTE[i], linewidth=1.5)
            axis.plot(x, y, "o", color=PALETTE[i], label=f"{i + 1}", markersize=4)
        axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[-1, 0, 1])
        axis.set(yticks=[-1, 0, 1], title=f"{100 * sparsity:.0f}% sparse")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="feature, by importance", loc="outside lower center", ncols=N
    )
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="features_in_two_dimensions",
            title="As features become sparse, more of them share two dimensions",
            caption="Columns of W of the best of several restarts, n = 5 features of importance "
            "0.9^i in m = 2 dimensions, at the paper's three sparsities.",
            original="introduction, first figure",
            draw=draw,
        ),
        Figure(
            name="features_in_two_dimensions_notebook",
            title="Ten sparsities between dense and 95% sparse",
            caption="The same models at the ten densities 20^(-k/9) of the authors' notebook.",
            original="notebook, first example",
            draw=draw,
        ),
    ),
)
