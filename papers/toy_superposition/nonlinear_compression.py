"""L: two dense numbers in one, by a non-linear code.

Appendix "Nonlinear Compression". Two independent x, y ~ U[0, 1) become one t = (⌊Zx⌋ + y) / Z, and
come back as ⌊Zt⌋ / Z and the rest of Zt. A network has no discontinuities, so every jump of the
floor is a linear ramp, ε wide in its argument (x or t). Nothing is trained: the loss has a closed
form, which is checked against the mean over random inputs that the paper plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

EPSILONS = (0.001, 0.01, 0.03, 0.1)
STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)  # Z
PAPER_EPSILON, PAPER_STEPS = 0.1, 3
NEURONS_PER_STEP = 12  # the paper's count, two for each linear segment of coder and decoder


class Parameters(Config):
    """What a profile sets."""

    samples: int


def soft_floor(a: Float[Array, " ..."], steps: int, width: float) -> Float[Array, " ..."]:
    """Floor on [0, steps) whose jumps, at 1 … steps - 1, are centred ramps of a width ≤ 1."""
    jump = np.clip(np.round(a), 1, max(steps - 1, 1))
    inside = (np.abs(a - jump) < width / 2) & (steps > 1)
    ramp = jump - 0.5 + (a - jump) / max(width, 1e-12)
    return np.where(inside, ramp, np.clip(np.floor(a), 0, steps - 1))


def encode(
    x: Float[Array, " ..."], y: Float[Array, " ..."], steps: int, epsilon: float
) -> Float[Array, " ..."]:
    """Return t = (⌊Zx⌋ + y) / Z, with ramps ε wide in x."""
    return (soft_floor(steps * x, steps, epsilon * steps) + y) / steps


def decode(
    t: Float[Array, " ..."], steps: int, epsilon: float
) -> tuple[Float[Array, " ..."], Float[Array, " ..."]]:
    """Return the reconstructions of x and y, with ramps ε wide in t."""
    whole = soft_floor(steps * t, steps, epsilon * steps)
    return whole / steps, steps * t - whole


def exact_loss(steps: int, epsilon: float) -> float:
    """Expected squared error, averaged over x and y, for Z ≥ 2 steps and εZ ≤ 1.

    Write F for the soft floor and w = εZ. The errors are (Zx - F(s)) / Z for x and
    F(s) - F(Zx) for y, where s = F(Zx) + y: piecewise polynomials over where Zx and s lie with
    respect to the ramps. Without ramps the loss is 1 / (6Z²).
    """
    z, w = steps, epsilon * steps
    if steps < 2 or not 0 <= w <= 1:
        raise ValueError(f"needs at least 2 steps and 0 <= epsilon <= 1/steps, got {steps=}, {w=}")
    twice = (
        w * (w**2 - 3 * w + 3) / 12
        - w * (w**3 + 9 * w**2 - 28 * w + 24) / (96 * z)
        + (1 + w) * (w**2 - 3 * w + 4) / (12 * z**2)
        - w * (w**4 - 4 * w**3 + 19 * w**2 - 32 * w + 8) / (96 * z**3)
    )
    return twice / 2


def linear_losses() -> tuple[float, float]:
    """Loss of keeping x and guessing the mean of y, and of sending the average of both.

    By Gauss-Legendre quadrature, exact for these polynomials; the same units as `exact_loss`.
    """
    node, weight = np.polynomial.legendre.leggauss(4)
    x, y = np.meshgrid((node + 1) / 2, (node + 1) / 2)
    area = np.outer(weight, weight) / 4
    keep = (y - 0.5) ** 2 / 2
    average = ((x - (x + y) / 2) ** 2 + (y - (x + y) / 2) ** 2) / 2
    return float((area * keep).sum()), float((area * average).sum())


def run(config: Parameters, run: Run) -> Arrays:
    """Measure the loss on random inputs; NaN where the ramps of a code would overlap."""
    x, y = np.random.default_rng(run.seed).random((2, config.samples))
    sampled = np.full((len(EPSILONS), len(STEPS)), np.nan)
    deviation = sampled.copy()
    for row, epsilon in enumerate(EPSILONS):
        for column, steps in enumerate(STEPS):
            if epsilon * steps <= 1:
                x_out, y_out = decode(encode(x, y, steps, epsilon), steps, epsilon)
                squared = ((x - x_out) ** 2 + (y - y_out) ** 2) / 2
                sampled[row, column] = squared.mean()
                deviation[row, column] = squared.std() / np.sqrt(config.samples)
    return {"sampled": sampled, "standard_error": deviation}


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Compare closed form, samples and the linear codes."""
    sampled = arrays["sampled"]
    exact = np.full(sampled.shape, np.nan)
    for index in np.argwhere(np.isfinite(sampled)):
        exact[tuple(index)] = exact_loss(STEPS[index[1]], EPSILONS[index[0]])
    linear = max(linear_losses())
    wins = exact < linear
    first = np.array(STEPS)[wins.argmax(1)]
    point = EPSILONS.index(PAPER_EPSILON), STEPS.index(PAPER_STEPS)
    limit = brentq(lambda e: exact_loss(PAPER_STEPS, e) - linear, 1e-6, 1 / PAPER_STEPS)
    unit = np.linspace(0, 1, 241)
    levels = (0.0, 0.5, 1.0)
    x_out, y_out = decode(unit, PAPER_STEPS, PAPER_EPSILON)
    return Evaluation(
        metrics={
            "linear_loss_keep_one": linear_losses()[0],
            "linear_loss_average": linear_losses()[1],
            "loss_at_paper_point": float(exact[point]),
            "loss_at_paper_point_relative_ramps": exact_loss(
                PAPER_STEPS, PAPER_EPSILON / PAPER_STEPS
            ),
            "sampled_loss_at_paper_point": float(sampled[point]),
            "largest_error_in_standard_errors": float(
                np.nanmax(np.abs(sampled - exact) / arrays["standard_error"])
            ),
            "fewest_steps_that_win": first,
            "fewest_neurons_that_win": NEURONS_PER_STEP * int(first.min()),
            "widest_ramp_that_wins_with_three_steps": float(limit),
            "best_steps": np.array(STEPS)[np.nanargmin(exact, axis=1)],
            "best_loss": np.nanmin(exact, axis=1),
        },
        figures={
            "nonlinear_compression": {
                "epsilon": EPSILONS,
                "steps": STEPS,
                "exact": exact,
                "sampled": sampled,
                "linear": linear,
                "unit": unit,
                "levels": levels,
                "t": [encode(unit, np.array(y), PAPER_STEPS, PAPER_EPSILON) for y in levels],
                "x_out": x_out,
                "y_out": y_out,
            }
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """The code, its inverse, and its loss against the number of steps."""
    figure, axes = subplots(1, 3, 2.5, gridspec_kw={"width_ratios": [1, 1, 1.5]})
    coder, decoder, losses = axes[0]
    for style, level, t in zip((":", "--", "-"), data["levels"], data["t"], strict=True):
        coder.plot(data["unit"], t, style, color=PALETTE[0], label=f"$y$ = {level:g}")
    coder.set(xlabel="$x$", ylabel="code $t$", xlim=(0, 1), ylim=(0, 1.42), yticks=[0, 0.5, 1])
    coder.legend(loc="upper left", ncols=1, handlelength=1.6, labelspacing=0.2)
    decoder.plot(data["unit"], data["x_out"], color=PALETTE[0], label="of $x$")
    decoder.plot(data["unit"], data["y_out"], color=PALETTE[1], label="of $y$")
    decoder.set(xlabel="code $t$", ylabel="reconstruction", xlim=(0, 1), ylim=(0, 1.42))
    decoder.set(yticks=[0, 0.5, 1])
    decoder.legend(loc="upper left", handlelength=1.6, labelspacing=0.2)
    _draw_losses(losses, data)
    panel_labels(axes)
    return figure


def _draw_losses(axis: Axes, data: Mapping[str, Any]) -> None:
    """Closed form as lines, random inputs as points, the linear codes as the reference."""
    axis.axhline(data["linear"], color="black", linestyle="--", linewidth=1)
    axis.text(data["steps"][-1], 1.1 * data["linear"], "linear, 1/24", ha="right", va="bottom")
    # From a wide ramp to a narrow one, the order of the curves from top to bottom.
    for row, epsilon in reversed(list(enumerate(data["epsilon"]))):
        colour = PALETTE[row]
        exact = np.array(data["exact"][row], dtype=float)
        sampled = np.array(data["sampled"][row], dtype=float)
        axis.plot(data["steps"], exact, color=colour, label=f"ε = {epsilon:g}")
        axis.plot(data["steps"], sampled, "o", color=colour, markersize=2.5)
    axis.set(xlabel="steps $Z$", ylabel="mean squared error", xscale="log", yscale="log")
    axis.set(xticks=[2, 3, 5, 10, 20, 30], xticklabels=["2", "3", "5", "10", "20", "30"])
    axis.set(ylim=(0.001, 0.07), yticks=[0.001, 0.003, 0.01, 0.03])
    axis.set(yticklabels=["0.001", "0.003", "0.01", "0.03"])
    axis.minorticks_off()
    axis.legend(loc="lower left", handlelength=1.2, labelspacing=0.25)


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="nonlinear_compression",
            title="A non-linear code packs two dense numbers into one",
            caption="(a) The code of x and y with Z = 3 steps and ramps ε = 0.1 wide, (b) its "
            "inverse, (c) squared error, mean over both numbers: closed form (lines) and random "
            "inputs (points), as far as the ramps do not overlap.",
            original='appendix "Nonlinear Compression"',
            draw=draw,
        ),
    ),
)
