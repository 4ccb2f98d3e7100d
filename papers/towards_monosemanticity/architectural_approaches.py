"""Why sparse training alone does not make neurons monosemantic: one neuron, four classes.

Section "Why not use architectural approaches?". Four inputs, equally likely, each its own class,
are seen through one neuron that is on or off; logits are linear in the neuron. On for one class,
the loss is at best 3/4 ln 3; on for two, ln 2. So cross-entropy prefers the polysemantic neuron,
with no superposition in sight. The paper's numbers are exact, and are found again by optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from shared.errors import Diverged
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

CLASSES = 4
MONOSEMANTIC, POLYSEMANTIC = 1, 2  # classes on which the neuron is on


class Parameters(Config):
    """What a profile sets."""

    restarts: int = Field(ge=1)
    steps: int = Field(ge=1)
    """Iterations of L-BFGS for each number of classes."""


def closed_form(on: int, classes: int = CLASSES) -> float:
    """Return the least cross-entropy, in nats, of one on/off neuron that is on for `on` classes.

    All that the neuron tells is on which side the class is; within a side, the classes are equally
    likely: (k/n) ln k + (1 - k/n) ln(n - k), with 0 ln 0 = 0.
    """
    return float(sum(side / classes * np.log(side) for side in (on, classes - on) if side > 0))


def optimised(on: int, steps: int, restarts: int, seed: int) -> Float[np.ndarray, " restarts"]:
    """Minimise the cross-entropy over output weights and biases; return each restart's loss.

    The neuron is 1 for the first `on` classes and 0 for the others. The loss is convex but its
    infimum lies at infinity, where the logits of the other side's classes are -∞.

    Raises:
        Diverged: a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    neuron = (torch.arange(CLASSES) < on).double()
    target = torch.arange(CLASSES)
    losses = []
    for _ in range(restarts):
        weight, bias = torch.randn(2, CLASSES, dtype=torch.float64, generator=generator)
        losses.append(_minimise(weight, bias, neuron, target, steps))
    if not np.isfinite(losses).all():
        raise Diverged(f"a neuron that is on for {on} classes has the losses {losses}")
    return np.array(losses)


def _minimise(
    weight: Float[Tensor, " classes"],
    bias: Float[Tensor, " classes"],
    neuron: Float[Tensor, " inputs"],
    target: Tensor,
    steps: int,
) -> float:
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(neuron[:, None] * weight + bias, target)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return float(loss().detach())


def run(config: Parameters, run: Run) -> Arrays:
    """Minimise the loss of a neuron that is on for 0, 1, …, 4 classes."""
    numbers = range(CLASSES + 1)
    losses = [optimised(on, config.steps, config.restarts, run.seed + on) for on in numbers]
    return {"losses": np.array(losses)}


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Compare the best loss found with the closed form."""
    found = arrays["losses"].min(1)
    exact = np.array([closed_form(on) for on in range(CLASSES + 1)])
    metrics = {
        "monosemantic": found[MONOSEMANTIC],
        "polysemantic": found[POLYSEMANTIC],
        "monosemantic_closed_form": exact[MONOSEMANTIC],
        "polysemantic_closed_form": exact[POLYSEMANTIC],
        "largest_gap": np.abs(found - exact).max(),
        "best_number_of_classes": int(found.argmin()),
    }
    figure = {"on": np.arange(CLASSES + 1), "found": found, "closed_form": exact}
    return Evaluation(metrics, {"architectural_approaches": figure})


def draw(data: Mapping[str, Any]) -> Canvas:
    """Loss by the number of classes on which the neuron is on: the curve, and what was found."""
    figure, axes = subplots(1, 1, 2.4, width=3.6)
    axis = axes[0, 0]
    fine = np.linspace(0, CLASSES, 201)
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [np.where(k > 0, k / CLASSES * np.log(k), 0) for k in (fine, CLASSES - fine)]
    axis.plot(fine, sum(sides), color="0.7", zorder=1, label="closed form")
    axis.scatter(data["on"], data["found"], color=PALETTE[0], zorder=2, label="optimised")
    names = ((MONOSEMANTIC, "monosemantic", "right"), (POLYSEMANTIC, "polysemantic", "center"))
    for on, name, side in names:
        text = f"{name}\n{data['found'][on]:.3f}"
        axis.annotate(
            text,
            (on, data["found"][on]),
            (0, -6),
            textcoords="offset points",
            ha=side,
            va="top",
        )
    axis.set(
        xlabel="classes on which the neuron is on",
        ylabel="cross-entropy (nats)",
        xticks=data["on"],
        ylim=(0.45, 1.45),
    )
    axis.legend(loc="upper center")
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="architectural_approaches",
            title="Cross-entropy prefers a neuron that stands for two things",
            caption="One on/off neuron and four equally likely classes: the least cross-entropy by "
            "the number of classes on which the neuron is on, in closed form and optimised.",
            original='section "Why not use architectural approaches?"',
            draw=draw,
        ),
    ),
)
