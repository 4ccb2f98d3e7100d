"""J1, J2: a ReLU on the hidden layer makes neurons, and superposition then happens in them.

Section "Superposition in a Privileged Basis": h = ReLU(Wx) without a hidden bias and
x' = ReLU(Wᵀh + b), n = 10, m = 5, importance 0.75^i. With a linear hidden layer W is arbitrary up
to a rotation; with a ReLU its rows are neurons that can be read. The paper trains 1000 models per
sparsity and shows the one of lowest loss. So do we: all train to the end on small batches, and the
best few, by an independent evaluation, train on with large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.neurons import blocks, neurons_per_feature
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, FULL_WIDTH, SEQUENTIAL, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

N, M = 10, 5
DENSITIES = (0.7, 0.35, 0.15, 0.12, 0.065, 0.03)  # one inside each regime that the paper names
COMPARED = 1  # the density at which W is shown for both hidden layers
NEAR = 0.01  # share by which a finalist's loss may exceed the best and still count as found
EVALUATION_BATCH = 1024


class Stage(Config):
    """One round: how many models per density train, how, and how they are then ranked."""

    models: int
    batch: int
    recipe: Recipe
    scoring_batches: int


class Parameters(Config):
    """What a profile sets: the rounds with a ReLU, and the one round without."""

    relu: list[Stage]
    linear: list[Stage]


def tournament(
    architecture: Architecture, stages: list[Stage], seed: int, device: str
) -> dict[str, torch.Tensor]:
    """Train `stages[0].models` models per density, of which each later stage keeps the best.

    Returns `W` and `b` of the winners, `loss` of all finalists, the winner first, measured on
    inputs that ranked nobody, and `rank` [densities, stages - 1], the place (0 is best) that the
    winner held at each cut.
    """
    density = torch.tensor(DENSITIES)
    groups = len(density)
    evaluation = SparseUniform(density, N, EVALUATION_BATCH)
    models = create(
        architecture,
        instances=groups * stages[0].models,
        n=N,
        m=M,
        generator=generator(seed, 0, device),
        importance=0.75 ** torch.arange(N),
    )
    ranks = torch.empty(groups, stages[0].models, 0, dtype=torch.long, device=device)
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        inputs = SparseUniform(density, N, stage.batch)
        models = train(models, inputs, stage.recipe, seed, f"{stage.models} models")
        losses = score(models, evaluation, stage.scoring_batches, seed, stream=2)
        keep = stage.models if following is None else following.models
        kept = best(losses, groups, keep)
        models, ranks = models.select(kept), ranks.flatten(0, 1)[kept].view(groups, keep, -1)
        if following is not None:
            place = torch.arange(keep, device=device).expand(groups, -1)
            ranks = torch.cat([ranks, place[:, :, None]], dim=2)
    loss = score(models, evaluation, stages[-1].scoring_batches, seed, stream=3)
    winners = models.select(torch.arange(groups, device=device) * stages[-1].models)
    return {"W": winners.W, "b": winners.b, "loss": loss.view(groups, -1), "rank": ranks[:, 0]}


def run(config: Parameters, run: Run) -> Arrays:
    """Find the best model of every density, with and without the hidden ReLU."""
    found = {
        "relu": tournament(Architecture(hidden_relu=True), config.relu, run.seed, run.device),
        "linear": tournament(Architecture(), config.linear, run.seed, run.device),
    }
    return {
        f"{hidden}_{name}": tensor.cpu().numpy()
        for hidden, tensors in found.items()
        for name, tensor in tensors.items()
    }


def strength(W: Float[np.ndarray, "*models m n"]) -> Float[np.ndarray, "*models m n"]:
    """Return how strongly each neuron carries each feature: its weight, if positive.

    Activations are not negative and the output weights are the input weights, so that a negative
    weight can only silence the neuron, or an output, and never pass its feature on.
    """
    return np.maximum(W, 0).astype(np.float64)


def typing(W: Float[np.ndarray, "m n"]) -> dict[str, int]:
    """Count what the neurons of one model do.

    `monosemantic`: neurons with one feature of their own. The others together hold
    `shared_features` in `shared_neurons`. `paired`: features carried by exactly two neurons.
    """
    parts = blocks(strength(W))
    shared = [part for part in parts if not part.monosemantic]
    return {
        "monosemantic": len(parts) - len(shared),
        "shared_features": sum(len(part.features) for part in shared),
        "shared_neurons": sum(len(part.neurons) for part in shared),
        "paired": int((neurons_per_feature(strength(W)) == 2).sum()),
    }


def in_reading_order(W: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Sort the neurons: monosemantic ones first, by feature, then the others by block."""
    parts = sorted(blocks(strength(W)), key=lambda part: (not part.monosemantic, part.features))
    named = [neuron for part in parts for neuron in part.neurons]
    return W[named + sorted(set(range(len(W))) - set(named))]


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Type the neurons of every winner and compare W with and without the hidden ReLU."""
    W, linear, loss = arrays["relu_W"], arrays["linear_W"], arrays["relu_loss"]
    kinds = [typing(model) for model in W]
    regimes = {
        f"p{1000 * density:03.0f}": {
            "monosemantic": kind["monosemantic"],
            "features_in_neurons": [kind["shared_features"], kind["shared_neurons"]],
            "paired": kind["paired"],
            "loss": losses[0],
            "share_near_best": (losses < (1 + NEAR) * losses.min()).mean(),
            "rank_at_cuts": ranks,
        }
        for density, kind, losses, ranks in zip(
            DENSITIES, kinds, loss, arrays["relu_rank"], strict=True
        )
    }
    return Evaluation(
        metrics={
            "dedicated_relu": kinds[COMPARED]["monosemantic"],
            "dedicated_linear": typing(linear[COMPARED])["monosemantic"],
            "dedicated_by_density": [kind["monosemantic"] for kind in kinds],
            **regimes,
        },
        figures={
            "privileged_basis": {
                "density": DENSITIES[COMPARED],
                "linear": linear[COMPARED],
                "relu": in_reading_order(W[COMPARED]),
            },
            "neuron_regimes": {
                "density": DENSITIES,
                "W": np.stack([in_reading_order(model) for model in W]),
                "kind": kinds,
            },
        },
    )


def _show(axis: Axes, W: Any) -> Any:
    """Wᵀ as an image, features down and neurons across."""
    values = np.transpose(W)
    image = axis.imshow(values, cmap=DIVERGING, vmin=-1.25, vmax=1.25, aspect="auto")
    axis.grid(visible=False)
    axis.set(xticks=range(M), xticklabels=range(1, M + 1))
    axis.set(yticks=[0, 4, 9], yticklabels=[1, 5, 10])
    return image


def draw_comparison(data: Mapping[str, Any]) -> Canvas:
    """W of the best model of each kind."""
    figure, axes = subplots(1, 2, 2.7, width=FULL_WIDTH * 0.75, sharey=True)
    panels = (("linear hidden layer", data["linear"]), ("ReLU hidden layer", data["relu"]))
    for axis, (title, W) in zip(axes.flat, panels, strict=True):
        image = _show(axis, W)
        axis.set(title=title, xlabel="hidden unit")
    axes[0, 0].set_ylabel("feature, by importance")
    figure.colorbar(image, ax=axes, label="weight $W_{ji}$", extend="both", shrink=0.9)
    return figure


def _words(kind: Mapping[str, int]) -> str:
    """What the neurons of a model do, in a few words."""
    alone, features = kind["monosemantic"], kind["shared_features"]
    parts = [f"{alone} alone"] if alone else []
    parts += [f"{features} in {kind['shared_neurons']}"] if features else []
    return "\n".join(parts)


def draw_regimes(data: Mapping[str, Any]) -> Canvas:
    """Above, W of every regime's best model; below, its neurons as stacks of weights."""
    import matplotlib
    from matplotlib.patches import Patch

    colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 1, N))
    columns = len(data["W"])
    figure, axes = subplots(2, columns, 4.2, sharex=True, sharey="row")
    for (top, bottom), W, density, kind in zip(
        axes.T, data["W"], data["density"], data["kind"], strict=True
    ):
        image = _show(top, W)
        top.set_title(f"p = {density:g}\n{_words(kind)}", fontsize=7.5)
        values = np.asarray(W)
        for sign in (-1, 1):
            floor = np.zeros(M)
            for i in range(N):
                part = sign * np.maximum(sign * values[:, i], 0)
                bottom.bar(range(M), part, bottom=floor, color=colors[i], width=0.8, linewidth=0)
                floor += part
        bottom.axhline(0, color="0.35", linewidth=0.6)
        bottom.grid(axis="x", visible=False)
        bottom.set(ylim=(-3, 4), xlabel="neuron")
    axes[0, 0].set_ylabel("feature, by importance")
    axes[1, 0].set_ylabel("weights, stacked")
    figure.colorbar(image, ax=axes[0], label="weight $W_{ji}$", extend="both")
    figure.legend(
        handles=[Patch(color=color, label=f"{i + 1}") for i, color in enumerate(colors)],
        title="feature, by importance",
        loc="outside lower center",
        ncols=N,
        handlelength=1,
        columnspacing=1,
    )
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="privileged_basis",
            title="A ReLU on the hidden layer aligns features with neurons",
            caption="W of the best model with a linear and with a ReLU hidden layer, n = 10 "
            "features of importance 0.75^i, m = 5, density 0.35. Colours end at ±1.25.",
            original="section 'Superposition in a Privileged Basis', first figure",
            draw=draw_comparison,
        ),
        Figure(
            name="neuron_regimes",
            title="From one feature per neuron to features as pairs of neurons",
            caption="The best of 1000 models per density p: W above (colours end at ±1.25), each "
            "neuron's weights stacked by feature below (negative weights downwards, cut at -3). "
            "'2 alone, 5 in 3': two neurons have one feature each, five features share three.",
            original="section 'Superposition in a Privileged Basis', W and neuron stack plots",
            draw=draw_regimes,
        ),
    ),
)
