"""E1 and E2: dimensions per feature, and the polytopes into which equal features arrange.

Section "The Geometry of Superposition": all features equally important, one model per density. Two
sizes: the notebook's (n = 200, m = 20; its recipe, against the values that its authors saved) and
the paper's (n = 400, m = 30). Two densities of the paper's size train longer: that resolves the
line at 2/3 and the cluster of features just below 3/4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float

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
from papers.toy_superposition.polytopes import FRACTIONS, identify
from papers.toy_superposition.training import Recipe, generator, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import FULL_WIDTH, PALETTE, subplots

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
DENSITIES = tuple(10 ** (-k / 9) for k in range(10) if k != 2)
LONG_DENSITIES = (0.65, 0.6)  # the second replaces k = 2

STICKY = 0.03  # how near to 1 or 1/2 a level of D* counts as on the plateau
UNPRIVILEGED = 0.95  # from this D* on W is arbitrary up to a rotation, and so is D_i
LINE, FLANK = 0.005, 0.0125  # half-width of a window, and how far off the line its flanks are
BELOW = 0.03  # by how much features that are not learned may lower D_i
PRESENT = 0.5  # ‖W_i‖ from which a feature is learned
TOUCHING = 0.2  # |cosine| from which two features are joined


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
    n: int, m: int, densities: tuple[float, ...], setting: Setting, run: Run, label: str
) -> Arrays:
    """Train one model per density."""
    density = torch.tensor(densities)
    start = create(
        Architecture(),
        instances=len(density),
        n=n,
        m=m,
        generator=generator(run.seed, 0, run.device),
        std=joint_xavier(n, m),
    )
    inputs = SparseUniform(density, n, setting.batch)
    trained = train(start, inputs, setting.recipe, run.seed, label)
    return {
        "density": density.numpy(),
        "W": trained.W.cpu().numpy(),
        "b": trained.b.cpu().numpy(),
    }


def run(config: Parameters, run: Run) -> Arrays:
    """Train both sizes; the paper's size comes with its longer runs, ordered by density."""
    notebook = _train(
        NOTEBOOK_N, NOTEBOOK_M, NOTEBOOK_DENSITIES, config.notebook, run, "notebook's size"
    )
    parts = (
        _train(N, M, DENSITIES, config.paper, run, "paper's size"),
        _train(N, M, LONG_DENSITIES, config.long, run, "paper's size, longer"),
    )
    joint = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(-joint["density"])
    return {f"notebook_{key}": array for key, array in notebook.items()} | {
        key: array[order] for key, array in joint.items()
    }


def on_line(D: Float[Array, " features"], line: float) -> tuple[int, list[int]]:
    """Count features within ±LINE of a line, and in two windows as wide, FLANK to either side."""

    def count(middle: float) -> int:
        return int((np.abs(D - middle) <= LINE).sum())

    return count(line), [count(line - FLANK), count(line + FLANK)]


def lines(
    W: Float[Array, "levels m n"], D: Float[Array, "levels n"]
) -> dict[str, dict[str, float | list[int]]]:
    """Count features on each of the paper's lines and beside it, where directions mean something.

    Raises no error where there are none: all counts are then zero.
    """
    kept = D[dimensions_per_feature(W) < UNPRIVILEGED].ravel()
    counts = {}
    for name, fraction in FRACTIONS.items():
        on, beside = on_line(kept, fraction)
        counts[name.replace(" ", "_")] = {"on": on, "flanks": beside, "flank": np.mean(beside)}
    return counts


def named_components(W: Float[Array, "m n"]) -> list[tuple[str | None, list[int]]]:
    """Return groups of interfering features with the polytope that each forms, None if none."""
    groups = [group for group in components(W, present=PRESENT, touching=TOUCHING) if len(group) > 1]
    return [(identify(W[:, group]), group) for group in groups]
