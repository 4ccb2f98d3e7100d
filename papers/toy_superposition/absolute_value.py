"""K1 to K4: computing |x| in superposition.

Section "Computation in Superposition": h = ReLU(W₁x), y = ReLU(W₂h + b), untied, no hidden bias,
features U[-1,1) with probability p, target |x|. K1: n = 3, m = 6, no superposition. K2: n = 100,
m = 40, importance 0.8^i, from dense to sparse; K3 looks closely at the middle. K4: the asymmetric
motif, a neuron that serves two features with unequal weights and another that inhibits one of
them, in models of n = 20, m = 10. Half of a feature is lost where an output starts dead, so W₂
starts at |W₁|ᵀ, and restarts differ in learning rate; the lowest loss wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from papers.toy_superposition.inputs import (
    Inputs,
    SparseUniform,
    Supports,
    independent_supports,
)
from papers.toy_superposition.models import Architecture, ToyModels, concatenate, create
from papers.toy_superposition.neurons import CARRIED, carried, features_per_neuron
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, FULL_WIDTH, PALETTE, SEQUENTIAL, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
N, M = 100, 40
SMALL_N, SMALL_M, SMALL_DENSITY = 3, 6, 0.5
MOTIF_N, MOTIF_M, MOTIF_DENSITIES = 20, 10, (0.5, 0.2)
DECAY = 0.8  # importance 0.8^i of K2 and K4
CLOSE_UPS = (2, 3)  # densities of K3
CLOSE_UP_FEATURES = 25
FEW, MANY = 2, 5  # a polysemantic neuron carries at least FEW features, a highly so at least MANY
UNEQUAL, PRODUCTS_AGREE, SERVES, QUIET = 1.5, 2.0, 0.3, 0.25  # of `motifs`


class Setting(Config):
    """How to train one of the three sizes: `restarts` models per density and recipe."""

    recipes: list[Recipe]
    restarts: int
    batch: int
    """Columns per batch; for enumerated supports, per support."""
    scoring_batches: int


class Parameters(Config):
    """What a profile sets."""

    small: Setting
    large: Setting
    motif: Setting
    std: float
    """Of W₁ at the start, for n = 100."""


def trained(
    setting: Setting,
    inputs: Inputs,
    size: tuple[int, int],
    importance: Float[torch.Tensor, " n"],
    run: Run,
    label: str,
    std: float | None = None,
) -> tuple[ToyModels, Float[torch.Tensor, " instances"]]:
    """Train all restarts; return each group's models, best first, and their losses.

    Ranked on stream 2, losses from stream 3.
    """
    n, m = size
    instances = inputs.groups * setting.restarts
    source = generator(run.seed, 0, run.device)
    architecture = Architecture(hidden_relu=True, tied=False, absolute=True)
    parts = []
    for recipe in setting.recipes:
        start = create(architecture, instances, n, m, source, importance=importance, std=std)
        start = replace(start, W_out=start.W.mT.abs().contiguous())
        parts.append(train(start, inputs, recipe, run.seed, f"{label}, lr {recipe.lr:g}"))
    by_group = torch.arange(len(parts) * instances, device=run.device)
    by_group = by_group.view(len(parts), inputs.groups, -1).transpose(0, 1).flatten()
    models = concatenate(parts).select(by_group)
    ranking = score(models, inputs, setting.scoring_batches, run.seed, stream=2)
    models = models.select(best(ranking, inputs.groups, keep=len(models.W) // inputs.groups))
    return models, score(models, inputs, setting.scoring_batches, run.seed, stream=3)


def run(config: Parameters, run: Run) -> Arrays:
    """Train the three sizes. Of n = 100 the best model is kept, of the others every restart."""
    supports, probability = independent_supports(torch.full((1, SMALL_N), SMALL_DENSITY))
    enumerated = Supports(supports, probability, config.small.batch, signed=True)
    large = SparseUniform(torch.tensor(DENSITIES), N, config.large.batch, signed=True)
    motif = SparseUniform(torch.tensor(MOTIF_DENSITIES), MOTIF_N, config.motif.batch, signed=True)
    small_size, motif_size = (SMALL_N, SMALL_M), (MOTIF_N, MOTIF_M)
    fading = DECAY ** torch.arange(N)
    found = {
        "small": trained(config.small, enumerated, small_size, torch.ones(SMALL_N), run, "3 to 6"),
        "large": trained(config.large, large, (N, M), fading, run, "100 to 40", config.std),
        "motif": trained(config.motif, motif, motif_size, fading[:MOTIF_N], run, "20 to 10"),
    }
    arrays = {}
    for name, (models, losses) in found.items():
        groups = {"small": 1, "large": len(DENSITIES), "motif": len(MOTIF_DENSITIES)}[name]
        keep = 1 if name == "large" else len(models.W) // groups
        assert models.W_out is not None
        for key, tensor in (
            ("W_in", models.W),
            ("W_out", models.W_out),
            ("b", models.b),
            ("loss", losses),
        ):
            table = tensor.view(groups, -1, *tensor.shape[1:])[:, :keep]
            arrays[f"{name}_{key}"] = table.cpu().numpy()
    return arrays


def rescaled(
    W_in: Float[np.ndarray, "*models m n"], W_out: Float[np.ndarray, "*models n m"]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale each neuron so that its largest |W₁| is 1, and W₂ inversely (the paper's footnote 15).

    The function that the model computes stays the same. Float64.
    """
    largest = np.maximum(np.abs(W_in).max(-1, keepdims=True), 1e-12).astype(np.float64)
    return W_in / largest, W_out * np.swapaxes(largest, -1, -2)


def strength(
    W_in: Float[np.ndarray, "*models m n"], W_out: Float[np.ndarray, "*models n m"]
) -> Float[np.ndarray, "*models m n"]:
    """Return |W₁| of each neuron, times the largest |W₂| that its activation meets."""
    reach = np.abs(W_out).max(-2).astype(np.float64)
    return np.abs(W_in) * reach[..., None]


def whole_pairs(W_in: Float[np.ndarray, "m n"], W_out: Float[np.ndarray, "n m"]) -> int:
    """Return how many features of a model have exactly one neuron per sign, and no other."""
    joined = carried(strength(W_in, W_out))
    up, down = (joined & (W_in > 0)).sum(0), (joined & (W_in < 0)).sum(0)
    return int(((up == 1) & (down == 1)).sum())


@dataclass(frozen=True)
class Motif:
    """A neuron that serves two features with unequal weights, and who keeps one of them quiet."""

    neuron: int
    large: int
    """The feature with the larger input and the smaller output weight."""
    small: int
    inhibitor: int
    """The neuron that takes most from output `small` while `large` alone is 1 (or -1)."""
    interference: float
    """What the neuron adds to output `small` then."""
    inhibited: bool
    """Whether output `small` stays below a quarter of that once all neurons act."""
    ratio: float
    """The larger of the two products of input and output weight over the smaller."""


def motifs(
    W_in: Float[np.ndarray, "m n"], W_out: Float[np.ndarray, "n m"], b: Float[np.ndarray, " n"]
) -> list[Motif]:
    """Find the asymmetric superposition of one model, the most nearly reciprocal first.

    Neuron j serves features a and c if |W₁|W₂ is above 0.3 for both. It is asymmetric if
    |W₁a| > 1.5 |W₁c| and W₂c > 1.5 W₂a, near-reciprocal if the two products are within a factor of
    two of each other.
    """
    joined = carried(strength(W_in, W_out))
    found = []
    for j, row in enumerate(W_in):
        size, out = np.abs(row).astype(np.float64), W_out[:, j].astype(np.float64)
        product = size * out
        served = np.flatnonzero(joined[j] & (product > SERVES)).tolist()
        for a, c in itertools.permutations(served, 2):
            uneven = size[a] > UNEQUAL * size[c] and out[c] > UNEQUAL * out[a]
            ratio = max(product[a] / product[c], product[c] / product[a])
            if not uneven or ratio > PRODUCTS_AGREE:
                continue
            lit = np.maximum(np.sign(row[a]) * W_in[:, a], 0) * W_out[c]
            alone = float(size[a] * out[c])
            found.append(
                Motif(
                    neuron=j,
                    large=a,
                    small=c,
                    inhibitor=int(lit.argmin()),
                    interference=alone,
                    inhibited=bool(lit.sum() + b[c] < QUIET * alone),
                    ratio=float(ratio),
                )
            )
    return sorted(found, key=lambda motif: motif.ratio)


def outputs(
    W_in: np.ndarray, W_out: np.ndarray, b: np.ndarray, x: Float[np.ndarray, "n batch"]
) -> Float[np.ndarray, "n batch"]:
    """Return what one model computes."""
    return np.maximum(W_out @ np.maximum(W_in @ x, 0) + b[:, None], 0)


def _closest_motif(arrays: Arrays, found: list[list[list[Motif]]]) -> dict[str, Any]:
    """The weights and outputs of one inhibited motif, for the figure; empty if there is none."""
    candidates = [
        (motif.ratio, group, model, motif)
        for group, models in enumerate(found)
        for model, motifs_ in enumerate(models)
        for motif in motifs_
        if motif.inhibited
    ]
    if not candidates:
        return {}
    _, group, model, motif = min(candidates, key=lambda candidate: candidate[:3])
    W_in, W_out = arrays["motif_W_in"][group, model], arrays["motif_W_out"][group, model]
    b = arrays["motif_b"][group, model]
    a, c = motif.large, motif.small
    neurons = [motif.neuron, motif.inhibitor]
    value = np.linspace(-1, 1, 41)
    x = np.zeros((MOTIF_N, len(value)))
    x[a] = value
    without = W_out.copy()
    without[c, neurons[1]] = 0
    return {
        "density": MOTIF_DENSITIES[group],
        "features": [a, c],
        "W_in": W_in[neurons][:, [a, c]],
        "W_out": W_out[[a, c]][:, neurons].T,
        "x": value,
        "y": outputs(W_in, W_out, b, x)[[a, c]],
        "y_without": outputs(W_in, without, b, x)[c],
    }


def in_reading_order(W_in: Float[np.ndarray, "m n"], count: np.ndarray) -> np.ndarray:
    """Return the order of neurons that puts fewer features first, then by the main feature."""
    return np.lexsort((np.abs(W_in).argmax(-1), count))


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Count features per neuron, and look for the motif."""
    small = (arrays["small_W_in"][0], arrays["small_W_out"][0])
    small_count = features_per_neuron(strength(*small))
    large = (arrays["large_W_in"][:, 0], arrays["large_W_out"][:, 0])
    count = features_per_neuron(strength(*large))
    polysemantic, highly = (count >= FEW).sum(-1), (count >= MANY).sum(-1)
    found = [
        [motifs(*model) for model in zip(*group, strict=True)]
        for group in zip(
            arrays["motif_W_in"], arrays["motif_W_out"], arrays["motif_b"], strict=True
        )
    ]
    having = [[any(motif.inhibited for motif in motifs_) for motifs_ in models] for models in found]
    W_in, _ = rescaled(*large)
    order = np.array([in_reading_order(W, c) for W, c in zip(W_in, count, strict=True)])
    sorted_W = np.take_along_axis(W_in, order[:, :, None], axis=1)
    small_in, small_out = rescaled(small[0][0], small[1][0])
    small_order = np.lexsort((-np.sign(small_in.sum(1)), np.abs(small_in).argmax(1)))
    return Evaluation(
        metrics={
            "small_monosemantic_neurons": (small_count[0] == 1).sum(),
            "small_whole_pairs": whole_pairs(small[0][0], small[1][0]),
            "small_loss": arrays["small_loss"][0, 0],
            "small_share_of_restarts_monosemantic": (small_count <= 1).all(-1).mean(),
            "polysemantic": polysemantic,
            "polysemantic_dense": polysemantic[:2],
            "polysemantic_tenth": polysemantic[2],
            "highly_polysemantic": highly,
            "highly_polysemantic_sparsest": highly[-1],
            "features_per_neuron": count.mean(-1),
            "loss": arrays["large_loss"][:, 0],
            "motif_share_of_models": np.mean(having, axis=1),
            "motif_share_sparse": np.mean(having[-1]),
            "motif_interference": max(
                (motif.interference for models in found for one in models for motif in one),
                default=0.0,
            ),
        },
        figures={
            "absolute_value_without_superposition": {
                "W_in": small_in[small_order],
                "W_out": small_out[:, small_order],
            },
            "absolute_value_by_density": {
                "density": DENSITIES,
                # Invisible in a stack, and most of the file.
                "size": np.where(np.abs(sorted_W) > 0.05, np.abs(sorted_W), 0),
                "count": np.take_along_axis(count, order, axis=1),
            },
            "absolute_value_close_up": {
                "density": [DENSITIES[k] for k in CLOSE_UPS],
                "W_in": sorted_W[list(CLOSE_UPS), :, :CLOSE_UP_FEATURES],
                "count": np.take_along_axis(count, order, axis=1)[list(CLOSE_UPS)],
            },
            "asymmetric_motif": _closest_motif(arrays, found),
        },
    )


def _feature_colors(shown: int) -> np.ndarray:
    """One colour per feature by importance; those from `shown` on are grey."""
    import matplotlib

    colors = np.full((N, 4), 0.8)
    colors[:shown] = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 1, shown))
    colors[:, 3] = 1
    return colors


def _stacks(axis: Axes, size: np.ndarray, colors: np.ndarray) -> None:
    """Each neuron's weights on top of each other, the largest at the bottom."""
    order = np.argsort(-size, axis=1)
    top = np.take_along_axis(size, order, axis=1).cumsum(1)
    neuron, place = np.nonzero(np.take_along_axis(size, order, axis=1))
    feature = order[neuron, place]
    end = top[neuron, place]
    start = end - size[neuron, feature]
    # One collection instead of thousands of bars.
    axis.vlines(neuron, start, end, colors=list(map(tuple, colors[feature])), linewidth=6)
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.7, len(size) - 0.3)


def draw_small(data: Mapping[str, Any]) -> Canvas:
    """Input and output weights of n = 3, m = 6, and the neurons as stacks."""
    W_in, W_out = np.asarray(data["W_in"]), np.asarray(data["W_out"])
    figure, axes = subplots(1, 3, 2.1)
    for axis, values, title in (
        (axes[0, 0], W_in.T, "$W_1$, neuron scaled to 1"),
        (axes[0, 1], W_out, "$W_2$"),
    ):
        image = axis.imshow(values, cmap=DIVERGING, vmin=-1.25, vmax=1.25, aspect="auto")
        axis.grid(visible=False)
        axis.set(title=title, yticks=range(SMALL_N), yticklabels=range(1, SMALL_N + 1))
    axes[0, 0].set_ylabel("input feature")
    axes[0, 1].set_ylabel("output feature")
    figure.colorbar(image, ax=axes[0, 1], extend="both")
    neurons = np.arange(SMALL_M)
    for sign in (-1, 1):
        floor = np.zeros(SMALL_M)
        for i in range(SMALL_N):
            part = sign * np.maximum(sign * W_in[:, i], 0)
            label = f"{i + 1}" if sign > 0 else None
            axes[0, 2].bar(neurons, part, bottom=floor, color=PALETTE[i], width=0.8, label=label)
            floor += part
    axes[0, 2].axhline(0, color="0.35", linewidth=0.6)
    axes[0, 2].set(title="neurons", ylabel="$W_1$, stacked", ylim=(-1.1, 1.8))
    axes[0, 2].legend(title="input feature", ncols=3, loc="upper center", handlelength=1)
    for axis in axes.flat:
        axis.set(xticks=neurons, xticklabels=neurons + 1, xlabel="neuron")
    return figure


def draw_by_density(data: Mapping[str, Any]) -> Canvas:
    """One row per density: every neuron's weights stacked, polysemantic neurons marked."""
    shown = 25
    rows = len(data["density"])
    figure, axes = subplots(rows, 1, 7.2, sharex=True)
    colors = _feature_colors(shown)
    for axis, density, size, count in zip(
        axes[:, 0], data["density"], data["size"], data["count"], strict=True
    ):
        _stacks(axis, np.asarray(size), colors)
        many = np.flatnonzero(np.asarray(count) >= FEW)
        top = axis.get_ylim()[1]
        axis.set_ylim(-0.16 * top, top)
        axis.plot(many, np.full(len(many), -0.08 * top), "s", color=PALETTE[4], markersize=2.5)
        axis.set_title(f"p = {density:g}: {len(many)} of {M} neurons polysemantic", loc="left")
        axis.set_xticks([])
    axes[rows // 2, 0].set_ylabel("|$W_1$|, stacked, each neuron's largest = 1")
    axes[-1, 0].set_xlabel("neuron, those with fewest features first (orange: polysemantic)")
    _feature_bar(figure, axes, shown)
    return figure


def _feature_bar(figure: Canvas, axes: np.ndarray, shown: int) -> None:
    """The legend of `_feature_colors`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(1, shown), SEQUENTIAL)
    bar = figure.colorbar(scale, ax=axes, shrink=0.5, aspect=40)
    bar.set_label(f"feature, by importance (grey: beyond {shown})")


def draw_close_up(data: Mapping[str, Any]) -> Canvas:
    """W₁ of every neuron and the most important features at two densities."""
    figure, axes = subplots(len(data["density"]), 1, 4.4, sharex=True)
    for axis, density, W, count in zip(
        axes[:, 0], data["density"], data["W_in"], data["count"], strict=True
    ):
        image = axis.imshow(
            np.transpose(W), cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        alone = int((np.asarray(count) < FEW).sum())
        if alone:
            axis.axvline(alone - 0.5, color="black", linewidth=1)
        axis.grid(visible=False)
        axis.set_title(f"p = {density:g}: {alone} neurons with one feature, {M - alone} shared")
        axis.set(ylabel="input feature", yticks=[0, 9, 19], yticklabels=[1, 10, 20])
        axis.set_xticks(range(0, M, 5), range(1, M + 1, 5))
    axes[-1, 0].set_xlabel("neuron, those with fewest features first")
    figure.colorbar(image, ax=axes, label="$W_1$, each neuron's largest = 1", shrink=0.7)
    return figure


def draw_motif(data: Mapping[str, Any]) -> Canvas:
    """Weights of the two neurons of one motif, and the outputs along the large input."""
    figure, axes = subplots(1, 3, 2.2, width=FULL_WIDTH)
    if not data:
        figure.suptitle("no motif found")
        return figure
    a, c = (feature + 1 for feature in data["features"])
    for axis, name, title in (
        (axes[0, 0], "W_in", "input weights $W_1$"),
        (axes[0, 1], "W_out", "output weights $W_2$"),
    ):
        for k, (neuron, values) in enumerate(
            zip(("shared", "inhibiting"), data[name], strict=True)
        ):
            axis.bar(np.arange(2) + 0.4 * k, values, 0.38, color=PALETTE[k], label=neuron)
        axis.axhline(0, color="0.35", linewidth=0.6)
        axis.grid(axis="x", visible=False)
        axis.set(title=title, xticks=[0.2, 1.2], xticklabels=[f"feature {a}", f"feature {c}"])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axis = axes[0, 2]
    x, (y_a, y_c) = data["x"], data["y"]
    for y, color, style, label in (
        (y_a, PALETTE[2], "-", f"output {a}"),
        (y_c, PALETTE[4], "-", f"output {c}"),
        (data["y_without"], PALETTE[4], "--", f"output {c}, no inhibition"),
    ):
        axis.plot(x, y, style, color=color, label=label)
    axis.set(title="outputs", xlabel=f"$x_{{{a}}}$, all others 0")
    more, names = axis.get_legend_handles_labels()
    figure.legend(
        [*handles, *more],
        [f"{label} neuron" for label in labels] + names,
        loc="outside lower center",
        ncols=3,
    )
    return figure


SECTION = "section 'Computation in Superposition'"

EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="absolute_value_without_superposition",
            title="|x| takes two neurons per feature, one for each sign",
            caption="Best model of n = 3 features and m = 6 neurons, each neuron scaled so that "
            "its largest input weight is 1.",
            original=f"{SECTION}, n = 3, m = 6",
            draw=draw_small,
        ),
        Figure(
            name="absolute_value_by_density",
            title="Sparse features are computed in superposition",
            caption="Best models of n = 100 features of importance 0.8^i and m = 40 neurons. A "
            f"neuron is polysemantic if a second feature has more than {CARRIED:g} of its largest "
            "weight.",
            original=f"{SECTION}, neuron stack plots by sparsity",
            draw=draw_by_density,
        ),
        Figure(
            name="absolute_value_close_up",
            title="At intermediate sparsity, dedicated and shared neurons side by side",
            caption="Input weights of the 25 most important features in the models of density "
            "0.1 and 0.03.",
            original=f"{SECTION}, close-ups of intermediate sparsity",
            draw=draw_close_up,
        ),
        Figure(
            name="asymmetric_motif",
            title="Asymmetric superposition: unequal weights, and a neuron that inhibits",
            caption="One neuron serves two features, with a large input and a small output weight "
            "for one and the reverse for the other; a second neuron suppresses what the first "
            "would wrongly output. n = 20, m = 10.",
            original=f"{SECTION}, 'asymmetric superposition motif'",
            draw=draw_motif,
        ),
    ),
)
