"""A toy of why a gate with a scale of its own beats a ReLU with any.

Appendix F, figure 15. A latent is on half of the time. Its pre-activation is N(2, 1/4) then, which
is also what its activation should be, and N(0, 1) when it is off, when it should be zero. ReLU
m (a − t)₊ needs a threshold t that keeps it silent, and so shifts what it lets through, which a
scale m only partly makes up for. JumpReLU m (a − d)₊ where a > t needs no such shift. The paper
picks t, m and d by hand, and says that they are not optimal; the curves of our figure have the
best m of each ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

ON_MEAN, ON_STD = 2.0, 0.5
OFF_MEAN, OFF_STD = 0.0, 1.0


class Shape(NamedTuple):
    """m (a − d)₊ where a > t, else zero. With d = t it is a ReLU, scaled by m."""

    t: float
    d: float
    m: float

    def __call__(self, a: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the activations of pre-activations."""
        return np.where(a > self.t, self.m * np.maximum(a - self.d, 0), 0)


SHAPES = {
    "relu": Shape(t=0.0, d=0.0, m=1.0),
    "relu_shifted": Shape(t=1.0, d=1.0, m=1.0),
    "relu_scaled": Shape(t=1.0, d=1.0, m=2.0),
    "jumprelu": Shape(t=1.0, d=0.0, m=1.0),
}
"""The paper's choices, and beside them the ReLU before shifting, and before scaling."""
LABELS = {
    "relu": "ReLU, t = 0",
    "relu_shifted": "ReLU, t = 1",
    "relu_scaled": "ReLU, t = 1, m = 2",
    "jumprelu": "JumpReLU, t = 1",
}


class Parameters(Config):
    """What a profile sets."""

    samples: int = Field(1_000_000, ge=1)
    """Pre-activations, of on and of off latents each."""
    thresholds: int = Field(61, ge=2)
    """Points of the curves, from t = 0 to 2.5."""


def moments_above(t: float, mean: float, std: float) -> tuple[float, float, float]:
    """Return P(a > t), E[a; a > t] and E[a²; a > t] of a ~ N(mean, std²)."""
    from scipy.special import ndtr

    z = (t - mean) / std
    above = float(ndtr(-z))
    density = float(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
    first = mean * above + std * density
    second = (mean**2 + std**2) * above + std * (mean + t) * density
    return above, first, second


def error_when_on(shape: Shape) -> float:
    """Return E (f(a) − a)² of an on latent in closed form. Raises ValueError unless d ≤ t.

    With x = a − d over the threshold, f − a = (m − 1) a − m d there, and −a below it.
    """
    if shape.d > shape.t:
        raise ValueError("a shape that starts beyond its threshold has another formula")
    above, first, second = moments_above(shape.t, ON_MEAN, ON_STD)
    slope, offset = shape.m - 1, shape.m * shape.d
    silent = ON_MEAN**2 + ON_STD**2 - second
    return silent + slope**2 * second - 2 * slope * offset * first + offset**2 * above


def firing_when_off(shape: Shape) -> float:
    """Return the probability that an off latent fires."""
    return moments_above(shape.t, OFF_MEAN, OFF_STD)[0]


def best_scale(t: float) -> float:
    """Return the m for which m (a − t)₊ has the least error when on: E[a (a−t)₊] / E[(a−t)₊²]."""
    above, first, second = moments_above(t, ON_MEAN, ON_STD)
    return (second - t * first) / (second - 2 * t * first + t**2 * above)


def run(config: Parameters, run: Run) -> Arrays:
    """Sample pre-activations; return the errors and firings of every shape, and closed forms."""
    random = np.random.default_rng(run.seed)
    on = random.normal(ON_MEAN, ON_STD, config.samples)
    off = random.normal(OFF_MEAN, OFF_STD, config.samples)
    shapes = SHAPES.values()
    thresholds = np.linspace(0, 2.5, config.thresholds)
    relus = [Shape(t, t, best_scale(t)) for t in thresholds.tolist()]
    jumps = [Shape(t, 0.0, 1.0) for t in thresholds.tolist()]
    return {
        "shape": np.array(list(SHAPES)),
        "error": np.array([np.square(shape(on) - on).mean() for shape in shapes]),
        "firing": np.array([(shape(off) > 0).mean() for shape in shapes]),
        "exact_error": np.array([error_when_on(shape) for shape in shapes]),
        "exact_firing": np.array([firing_when_off(shape) for shape in shapes]),
        "threshold": thresholds,
        "curve_firing": np.array([firing_when_off(shape) for shape in jumps]),
        "curve_relu": np.array([error_when_on(shape) for shape in relus]),
        "curve_unscaled": np.array([error_when_on(shape._replace(m=1.0)) for shape in relus]),
        "curve_jumprelu": np.array([error_when_on(shape) for shape in jumps]),
    }


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Report each shape's error when on and its firing when off, sampled and exact."""
    names = [str(name) for name in arrays["shape"]]
    metrics = {
        name: {
            "error_when_on": arrays["error"][place],
            "firing_when_off": arrays["firing"][place],
            "exact_error_when_on": arrays["exact_error"][place],
            "exact_firing_when_off": arrays["exact_firing"][place],
        }
        for place, name in enumerate(names)
    }
    curves = {key: arrays[f"curve_{key}"] for key in ("firing", "relu", "unscaled", "jumprelu")}
    a = np.linspace(-3, 4, 141)
    density = {
        "on": np.exp(-(((a - ON_MEAN) / ON_STD) ** 2) / 2) / (ON_STD * np.sqrt(2 * np.pi)),
        "off": np.exp(-(((a - OFF_MEAN) / OFF_STD) ** 2) / 2) / (OFF_STD * np.sqrt(2 * np.pi)),
    }
    return Evaluation(
        {
            "shapes": metrics,
            "best_scaled_relu_error": error_when_on(Shape(t=1.0, d=1.0, m=best_scale(1.0))),
        },
        {
            "activation_shapes": {
                "a": a,
                "density": density,
                "shapes": {name: SHAPES[name](a) for name in names},
                "points": {
                    name: [metrics[name]["firing_when_off"], metrics[name]["error_when_on"]]
                    for name in names
                },
                "curves": curves,
            }
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """Draw the densities, the shapes over them, and every shape's two kinds of error."""
    figure, axes = subplots(1, 3, 2.8)
    densities, shapes, errors = axes[0]
    a = np.array(data["a"])
    for state, colour in (("off", "0.55"), ("on", PALETTE[2])):
        density = np.array(data["density"][state])
        densities.fill_between(a, density, color=colour, alpha=0.35, linewidth=0, label=state)
    densities.axvline(1, color="0.3", linestyle="--", linewidth=0.8)
    densities.text(0.85, 0.55, "t = 1", ha="right", fontsize=7)
    densities.set(xlabel="pre-activation", ylabel="density", xlim=(-3, 4), ylim=(0, 0.85))
    densities.legend(loc="upper left")
    for number, (name, values) in enumerate(data["shapes"].items()):
        # A jump is drawn as a gap.
        line = np.where(np.abs(np.gradient(values, a)) > 4, np.nan, np.array(values, dtype=float))
        dashes = "--" if name == "jumprelu" else "-"  # where it lies on that with t = 0
        shapes.plot(a, line, dashes, color=PALETTE[number], label=LABELS[name])
        errors.plot(*data["points"][name], "o", color=PALETTE[number], zorder=3)
    shapes.set(xlabel="pre-activation", ylabel="activation", xlim=(-1, 4), ylim=(-0.15, 6))
    handles, labels = shapes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    curves = {key: np.array(values) for key, values in data["curves"].items()}
    for key, colour, label in (
        ("unscaled", PALETTE[1], "ReLU"),
        ("relu", PALETTE[2], "ReLU, best m"),
        ("jumprelu", PALETTE[3], "JumpReLU"),
    ):
        errors.plot(curves["firing"], curves[key], "-", color=colour, linewidth=1, label=label)
    errors.set(xlabel="P(fires when off)", ylabel="squared error when on", yscale="log")
    errors.legend(loc="lower left")
    panel_labels(axes)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="activation_shapes",
            title="A toy of activation functions: ReLU, shifted and scaled, and JumpReLU",
            caption="(a) Pre-activations of a latent that is on, N(2, 1/4), and off, N(0, 1). "
            "(b) The paper's activation functions, and the ReLUs that they start from. (c) Squared "
            "error of on latents against how often off latents fire: points are the paper's "
            "choices, curves are all thresholds from 0 to 2.5 in closed form, ReLU unscaled and "
            "with the scale that is best at each.",
            original="Figure 15, Appendix F",
            draw=draw,
        ),
    ),
)
