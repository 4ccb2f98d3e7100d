"""B: how many features a model represents as they become sparse.

Section "Demonstrating Superposition", "Basic Results": a linear model and seven ReLU output models
of n = 20 features in m = 5 dimensions (importance 0.7^i), and the same at n = 80, m = 20 (0.9^i).
B1 is the dense model on its own, B2 and B3 are the two sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from papers.toy_superposition.geometry import cosines, gram, interference, norms
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, ToyModels, create
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, SEQUENTIAL, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
EVALUATION_BATCH = 8192
LINEAR_DENSITY = DENSITIES[-1]  # the paper shows its linear model at the highest sparsity
DENSE, FIRST_SUPERPOSED = 0, 1  # positions in DENSITIES
MODERATE, SPARSER, SPARSE = slice(0, 3), slice(3, 7), slice(4, 7)  # p ≥ 0.1, ≤ 0.03, ≤ 0.01
EARLY = slice(1, 3)  # p = 0.3 and 0.1, where superposition sets in
ORTHOGONAL = 0.1  # interference below which a bar looks dark
ANTIPODAL, ALIGNED = -0.95, 0.1  # cosine of a pair; |cosine| to every other feature
PARTNER = 0.5  # ‖W_i‖ from which a feature can be another's partner


@dataclass(frozen=True)
class Size:
    """One of the paper's two sizes; a feature counts as represented from ‖W_i‖ = `represented`."""

    n: int
    m: int
    decay: float
    represented: float

    @property
    def importance(self) -> Float[Tensor, " n"]:
        """I_i = decay^i."""
        return self.decay ** torch.arange(self.n)


SIZES = {"n20": Size(20, 5, 0.7, represented=0.9), "n80": Size(80, 20, 0.9, represented=0.5)}


class Training(Config):
    """How the models of one size are trained and ranked."""

    recipe: Recipe
    restarts: int
    batch: int
    evaluation_batches: int


class Parameters(Config):
    """What a profile sets."""

    n20: Training
    n80: Training


def best_models(
    architecture: Architecture,
    size: Size,
    densities: tuple[float, ...],
    training: Training,
    run: Run,
    label: str,
) -> tuple[ToyModels, Tensor]:
    """Train `restarts` models per density; return the best of each and its loss on fresh inputs."""
    density = torch.tensor(densities)
    start = create(
        architecture,
        instances=len(density) * training.restarts,
        n=size.n,
        m=size.m,
        generator=generator(run.seed, 0, run.device),
        importance=size.importance,
    )
    inputs = SparseUniform(density, size.n, training.batch)
    trained = train(start, inputs, training.recipe, run.seed, label)
    fresh = SparseUniform(density, size.n, EVALUATION_BATCH)
    ranking = score(trained, fresh, training.evaluation_batches, run.seed, stream=2)
    chosen = trained.select(best(ranking, fresh.groups))
    return chosen, score(chosen, fresh, training.evaluation_batches, run.seed, stream=3)


def run(config: Parameters, run: Run) -> Arrays:
    """For each size: the linear model first, then one ReLU output model per density."""
    arrays: Arrays = {}
    for name, size in SIZES.items():
        training: Training = getattr(config, name)
        linear, linear_loss = best_models(
            Architecture(output_relu=False),
            size,
            (LINEAR_DENSITY,),
            training,
            run,
            f"linear, n={size.n}",
        )
        relu, relu_loss = best_models(
            Architecture(), size, DENSITIES, training, run, f"ReLU output, n={size.n}"
        )
        arrays |= {
            f"{name}_W": torch.cat([linear.W, relu.W]).cpu().numpy(),
            f"{name}_b": torch.cat([linear.b, relu.b]).cpu().numpy(),
            f"{name}_loss": torch.cat([linear_loss, relu_loss]).cpu().numpy(),
        }
    return arrays


def antipodal_share(
    W: Float[np.ndarray, "models m n"], represented: float
) -> Float[np.ndarray, " models"]:
    """Of the represented features that are not orthogonal to all others: the share in strict pairs.

    Strict: opposite to one other feature (cosine < -0.95) and orthogonal to the rest (|cosine| <
    0.1), among all features of at least half length: a pair's second feature may be a little too
    short to count as represented. NaN where all are orthogonal.
    """
    present, partner = norms(W) >= represented, norms(W) >= PARTNER
    cosine = cosines(W) * (partner[:, :, None] & partner[:, None, :])
    cosine[:, np.arange(W.shape[2]), np.arange(W.shape[2])] = 0
    opposite = (cosine < ANTIPODAL).sum(-1)
    strict = (opposite == 1) & ((np.abs(cosine) >= ALIGNED).sum(-1) == 1)
    superposed = present & (interference(W) >= ORTHOGONAL)
    share = np.full(len(W), np.nan)
    return np.divide(
        (strict & superposed).sum(1), superposed.sum(1), out=share, where=superposed.any(1)
    )


def _mean_rank(chosen: np.ndarray) -> float:
    """Mean place in the order of importance (0 is the most important) of the chosen features."""
    return float(np.flatnonzero(chosen).mean()) if chosen.any() else np.nan


def _measure(size: Size, W: np.ndarray, b: np.ndarray, loss: np.ndarray) -> dict[str, Any]:
    """Metrics of one size; the linear model is the first, the ReLU models follow by density."""
    length, shared = norms(W), interference(W)
    linear, relu = length[0], length[1:]
    present = relu >= size.represented
    orthogonal = present & (shared[1:] < ORTHOGONAL)
    off_diagonal = gram(W[1:]) * ~np.eye(size.n, dtype=bool)
    positive = off_diagonal.max((1, 2))
    lowest_bias = b[1:].min(1)
    # Dense, the best linear reconstruction leaves the variance of the dropped features.
    linear_optimum = (size.decay ** np.arange(size.m, size.n)).sum() / 12
    return {
        "linear_represented": (linear >= size.represented).sum(),
        "linear_shortest_kept": linear[: size.m].min(),
        "linear_longest_dropped": linear[size.m :].max(),
        "linear_interference": shared[0, : size.m].max(),
        "represented": present.sum(1),
        "represented_moderate": present[MODERATE].sum(1),
        "represented_sparser": present[SPARSER].sum(1),
        "orthogonal": orthogonal.sum(1),
        "dense_bias_of_kept": np.abs(b[1 + DENSE, : size.m]).max(),
        "dense_bias_of_dropped": b[1 + DENSE, size.m :],
        "dense_loss_over_linear_optimum": loss[1 + DENSE] / linear_optimum,
        "early_antipodal_share": antipodal_share(W[1:][EARLY], size.represented),
        "early_rank_of_orthogonal": _mean_rank(orthogonal[FIRST_SUPERPOSED]),
        "early_rank_of_superposed": _mean_rank((present & ~orthogonal)[FIRST_SUPERPOSED]),
        "positive_interference_moderate": positive[MODERATE],
        "positive_interference_sparse": positive[SPARSE],
        "lowest_bias_moderate": lowest_bias[MODERATE],
        "lowest_bias_sparse": lowest_bias[SPARSE],
        "loss": loss,
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Count represented and orthogonal features, and describe the interference between them."""
    metrics: dict[str, Any] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, size in SIZES.items():
        W, b = arrays[f"{name}_W"], arrays[f"{name}_b"]
        metrics[name] = _measure(size, W, b, arrays[f"{name}_loss"])
        figures[f"superposition_by_sparsity_{name}"] = {
            "density": (LINEAR_DENSITY, *DENSITIES),
            "represented_from": size.represented,
            "W": W,
            "b": b,
            "norm": norms(W),
            "superposition": interference(W),
        }
    small = figures["superposition_by_sparsity_n20"]
    keys = ("W", "b", "norm", "superposition")
    figures["superposition_example"] = {key: small[key][1 + DENSE] for key in keys}
    return Evaluation(metrics, figures)


def _draw_weights(axis: Axes, W: Any, b: Any) -> None:
    """WᵀW as a map, the bias as a column at its right, on one colour scale from -1 to 1."""
    n = len(b)
    width, gap = n / 10, n / 20
    for image, extent in (
        (gram(np.asarray(W)), (0, n, n, 0)),
        (np.asarray(b)[:, None], (n + gap, n + gap + width, n, 0)),
    ):
        axis.imshow(image, DIVERGING, vmin=-1, vmax=1, interpolation="nearest", extent=extent)
    axis.set(xlim=(-0.01 * n, 1.01 * n + gap + width), ylim=(1.01 * n, -0.01 * n), yticks=[])
    axis.set_xticks([n / 2, n + gap + width / 2], ["$W^TW$", "$b$"])
    axis.tick_params(length=0, pad=1)
    axis.spines[:].set_visible(False)
    axis.grid(False)


def _draw_norms(axis: Axes, norm: Any, superposition: Any) -> None:
    """A bar of ‖W_i‖ per feature, the most important on top, coloured by its superposition."""
    import matplotlib

    colours = matplotlib.colormaps[SEQUENTIAL](np.clip(superposition, 0, 1))
    height = 0.8 if len(norm) < 50 else 1.0
    axis.barh(np.arange(len(norm)) + 0.5, norm, height=height, color=colours, linewidth=0)
    axis.set(ylim=(len(norm), 0), yticks=[], xlim=(0, 1.3), xticks=[0, 1])
    axis.grid(visible=True, axis="x")


def _colour_bars(canvas: Canvas, left: Any, right: Any) -> None:
    """Horizontal colour bars below some panels: of weights, and of superposition."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    for panels, cmap, ticks, label in (
        (left, DIVERGING, {-1: "−1", 0: "0", 1: "1"}, "weight or bias"),
        (right, SEQUENTIAL, {0: "0", 0.5: "0.5", 1: "≥ 1"}, SUPERPOSITION_LABEL),
    ):
        bar = canvas.colorbar(
            ScalarMappable(Normalize(min(ticks), max(ticks)), cmap),
            ax=panels,
            orientation="horizontal",
            label=label,
            aspect=30,
            fraction=0.06,
        )
        bar.set_ticks(list(ticks), labels=list(ticks.values()))


SUPERPOSITION_LABEL = r"superposition $\sum_{j\neq i}(\hat W_i\cdot W_j)^2$"


def draw_example(data: Mapping[str, Any]) -> Canvas:
    """The dense model: its weights and biases, and its features' lengths."""
    figure, axes = subplots(1, 2, 2.9, width_ratios=[1.1, 1])
    weights, lengths = axes[0]
    _draw_weights(weights, data["W"], data["b"])
    weights.set(ylabel="feature, by importance")
    _draw_norms(lengths, data["norm"], data["superposition"])
    lengths.set(xlabel=r"$\|W_i\|$", ylabel="feature, by importance")
    _colour_bars(figure, weights, lengths)
    return figure


def draw_by_sparsity(data: Mapping[str, Any]) -> Canvas:
    """One column per model, from dense to sparse: weights above, features' lengths below."""
    count = len(data["W"])
    figure, axes = subplots(2, count, 3.7, height_ratios=[1, 2])
    for column, density in enumerate(data["density"]):
        weights, lengths = axes[:, column]
        _draw_weights(weights, data["W"][column], data["b"][column])
        _draw_norms(lengths, data["norm"][column], data["superposition"][column])
        present = (np.asarray(data["norm"][column]) >= data["represented_from"]).sum()
        kind = "linear" if column == 0 else "ReLU"
        weights.set_title(f"{kind}\n$p$ = {density:g}", fontsize=7.5)
        lengths.set_title(f"{present} kept", fontsize=7)
        lengths.set_xlabel(r"$\|W_i\|$", fontsize=7, labelpad=1)
    axes[1, 0].set_ylabel(f"{len(data['b'][0])} features, by importance")
    half = count // 2
    _colour_bars(figure, axes[:, :half], axes[:, half:])
    return figure


def _figure(
    name: str, title: str, caption: str, draw: Callable[[Mapping[str, Any]], Canvas]
) -> Figure:
    original = 'section "Demonstrating Superposition", "Basic Results"'
    return Figure(name=name, title=title, caption=caption, original=original, draw=draw)


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        _figure(
            "superposition_example",
            "A dense model represents as many features as it has dimensions",
            "n = 20 features in m = 5 dimensions, density 1. Left: WᵀW and the bias b. Right: the "
            "length of each feature, coloured by how much of the others lies along it.",
            draw_example,
        ),
        _figure(
            "superposition_by_sparsity_n20",
            "The sparser the features, the more of them share five dimensions",
            "A linear model and seven ReLU output models, n = 20, m = 5, importance 0.7^i, best of "
            "several restarts; p is the density of the features. Kept: ‖W_i‖ of at least 0.9.",
            draw_by_sparsity,
        ),
        _figure(
            "superposition_by_sparsity_n80",
            "The same with 80 features in 20 dimensions",
            "A linear model and seven ReLU output models, n = 80, m = 20, importance 0.9^i, best "
            "of several restarts; p is the density. Kept: ‖W_i‖ of at least 0.5.",
            draw_by_sparsity,
        ),
    ),
)
