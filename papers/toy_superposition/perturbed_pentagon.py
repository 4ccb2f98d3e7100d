"""F: one feature sparser or denser than the other four, and the pentagon gives way to two digons.

Section "Non-Uniform Superposition", "Perturbing a Single Feature": n = 5, m = 2, I = 1, density
0.05 for four features and `ratio` times that for one. Two experiments: many restarts refitted at
every ratio, as in the paper; and the two solutions followed apart, each from its own constructed
start, so that both loss curves exist on both sides of their crossing and at other densities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from papers.toy_superposition.geometry import angular_gaps, cosines, norms
from papers.toy_superposition.inputs import Supports, independent_supports
from papers.toy_superposition.models import Architecture, ToyModels, create
from papers.toy_superposition.training import Recipe, best, generator, score, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, SEQUENTIAL, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

N, M = 5, 2
VARIED = 0  # the feature whose density is varied
RATIOS = tuple(2 ** (k / 3) for k in range(-9, 7))  # its density over that of the others
DENSITY = 0.05  # the paper's
BASELINES = (0.02, 0.03, 0.05, 0.07, 0.1)
CURVE_RATIOS = tuple(2 ** (k / 4) for k in range(-12, 9))
ABSENT = 0.3  # ‖W_i‖ below which a feature counts as not represented
OTHER, PENTAGON, DIGONS = range(3)
BRANCHES = (PENTAGON, DIGONS)
JITTER = 0.01  # noise on the constructed starts, so that a saddle point is not taken for a branch


class Parameters(Config):
    """What a profile sets."""

    recipe: Recipe
    restarts: int
    per_support: int
    curve_recipe: Recipe
    curve_seeds: int
    curve_batches: int


def perturbed_inputs(
    density: Float[Tensor, " groups"], ratio: Float[Tensor, " groups"], per_support: int
) -> Supports:
    """Return independent features of `density`, the varied one `ratio` times that."""
    each = density[:, None].repeat(1, N)
    each[:, VARIED] *= ratio
    return Supports(*independent_supports(each), per_support)


def constructed(
    density: Float[Tensor, " groups"], ratio: Float[Tensor, " groups"], source: torch.Generator
) -> ToyModels:
    """Return a regular pentagon and two digons without the varied feature, for every group."""
    models = create(Architecture(), len(density) * 2, N, M, source, std=JITTER)
    angle = 2 * torch.pi * torch.arange(N) / N
    pentagon = 1.1 * torch.stack([angle.cos(), angle.sin()])
    digons = torch.tensor([[0.0, 1, 0, -1, 0], [0, 0, 1, 0, -1]])
    models.W.view(-1, 2, M, N).add_(torch.stack([pentagon, digons]).to(models.W.device))
    bias = models.b.view(-1, 2, N)
    bias[:, 0] = -0.2
    bias[:, 1, VARIED] = (density * ratio / 2).to(bias.device)  # its mean: all that is left of it
    return models


def run(config: Parameters, run: Run) -> Arrays:
    """Refit `restarts` models at every ratio; follow both branches under `curve_seeds` seeds."""
    ratio = torch.tensor(RATIOS)
    inputs = perturbed_inputs(torch.full_like(ratio, DENSITY), ratio, config.per_support)
    start = create(
        Architecture(),
        instances=len(ratio) * config.restarts,
        n=N,
        m=M,
        generator=generator(run.seed, 0, run.device),
    )
    trained = train(start, inputs, config.recipe, run.seed, "perturbed pentagon")
    winners = best(score(trained, inputs, 50, run.seed, stream=2), inputs.groups)
    loss = score(trained, inputs, 50, run.seed, stream=3)
    per_ratio = (len(ratio), config.restarts)
    curves = [_curves(config, run, index) for index in range(config.curve_seeds)]
    return {
        "W": trained.W.view(*per_ratio, M, N).cpu().numpy(),
        "loss": loss.view(per_ratio).cpu().numpy(),
        "winner": (winners.cpu() % config.restarts).numpy(),
        "curve_W": np.stack([W for W, _ in curves]),
        "curve_loss": np.stack([losses for _, losses in curves]),
    }


def _curves(
    config: Parameters, run: Run, index: int
) -> tuple[
    Float[Array, "baselines ratios branches m n"], Float[Array, "baselines ratios branches"]
]:
    """Train both branches at every baseline density and ratio, and evaluate them precisely.

    Both are evaluated on the same inputs, so that most of the noise of their difference cancels.
    """
    seed = run.seed * config.curve_seeds + index
    density, ratio = torch.cartesian_prod(torch.tensor(BASELINES), torch.tensor(CURVE_RATIOS)).T
    inputs = perturbed_inputs(density, ratio, config.per_support)
    start = constructed(density, ratio, generator(seed, 4, run.device))
    trained = train(start, inputs, config.curve_recipe, seed, "pentagon and digons")
    loss = score(trained, inputs, config.curve_batches, seed, stream=3)
    shape = (len(BASELINES), len(CURVE_RATIOS), len(BRANCHES))
    return trained.W.view(*shape, M, N).cpu().numpy(), loss.view(shape).cpu().numpy()


def kinds(W: Float[Array, "*models 2 5"]) -> Int[Array, "*models"]:
    """Classify solutions: PENTAGON, DIGONS or OTHER.

    Pentagon: all five features are represented, neighbours 36 to 108 degrees apart (half and one
    and a half times a regular pentagon's 72). Digons: the varied feature is absent, and each of
    the other four is represented and has one antipode (cosine below -0.95).
    """
    present = norms(W) > ABSENT
    others = np.arange(N) != VARIED
    antipodes = (cosines(W[..., others]) < -0.95).sum(-1)
    pairs = present[..., others].all(-1) & (antipodes == 1).all(-1)
    digons = ~present[..., VARIED] & pairs
    gap = angular_gaps(W)
    pentagon = present.all(-1) & (gap > 36).all(-1) & (gap < 108).all(-1)
    return np.where(pentagon, PENTAGON, np.where(digons, DIGONS, OTHER))


def canonical(W: Float[Array, "2 5"]) -> Float[Array, "5 2"]:
    """Return the features as points, turned and reflected so that solutions can be laid over.

    The varied feature points up; where it is absent, the other four lie as near to the diagonals
    as they can. Reflection puts the other feature nearest to the varied one on the right.
    """
    z = W[0] + 1j * W[1]
    others = np.arange(N) != VARIED
    if np.abs(z[VARIED]) > ABSENT:
        z = z * 1j * np.conj(z[VARIED]) / np.abs(z[VARIED])
        nearest = z[others][np.argmax((z[others] / np.abs(z[others])).imag)]
        z = -np.conj(z) if nearest.real < 0 else z
    else:
        # Features on two orthogonal axes have one common fourth power, at the diagonals -1.
        z = z * np.exp(1j * (np.pi - np.angle((z[others] ** 4).sum())) / 4)
    return np.stack([z.real, z.imag], axis=-1)


def neighbour_gap(W: Float[Array, "*models 2 5"]) -> Float[Array, "*models"]:
    """Return the mean angle, in degrees, between the varied feature and its two neighbours.

    A regular pentagon has 72. The four others are sorted by angle around the varied one, so that
    the first and the last are its neighbours.
    """
    angle = np.degrees(np.arctan2(W[..., 1, :], W[..., 0, :]))
    around = np.sort((np.delete(angle, VARIED, -1) - angle[..., [VARIED]]) % 360, axis=-1)
    gap: Array = (around[..., 0] + 360 - around[..., -1]) / 2
    return gap


def crossings(
    ratios: Float[Array, " ratios"],
    pentagon: Float[Array, " ratios"],
    digons: Float[Array, " ratios"],
) -> Float[Array, " roots"]:
    """Return the ratios at which two loss curves cross, from a monotone cubic interpolation.

    Losses are NaN where a branch does not exist; only ratios where both do are used.
    """
    both = np.isfinite(pentagon) & np.isfinite(digons)
    if both.sum() < 2:
        return np.empty(0)
    difference = np.log(pentagon[both] / digons[both])
    roots = PchipInterpolator(np.log(ratios[both]), difference).roots(extrapolate=False)
    return np.exp(roots)


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Describe the best solution at every ratio, and find where the branches cross."""
    ratios, rows = np.array(RATIOS), np.arange(len(RATIOS))
    kind = kinds(arrays["W"])
    W, winner_kind = arrays["W"][rows, arrays["winner"]], kind[rows, arrays["winner"]]
    uniform, sparsest, base = RATIOS.index(1.0), 0, BASELINES.index(DENSITY)
    varied = norms(W)[:, VARIED]
    is_pentagon = winner_kind == PENTAGON

    curve_ratios = np.array(CURVE_RATIOS)
    exists = kinds(arrays["curve_W"]) == np.array(BRANCHES)
    curve = np.where(exists, arrays["curve_loss"], np.nan)
    roots = [[crossings(curve_ratios, *c.T) for c in of_seed] for of_seed in curve]
    sparser = np.array([[1 / r[0] if len(r) == 1 else np.nan for r in s] for s in roots])
    mean = sparser.mean(0)
    here = curve[:, base].mean(0)  # NaN unless the branch exists under every seed
    p = DENSITY
    closed = 2 * p**2 / 3 + p * curve_ratios / 3 - (p * curve_ratios) ** 2 / 4
    two = here[:, 1]
    coexist = np.isfinite(here).all(1)

    # Which kind should win at a ratio: the lower of the two curves.
    expected = np.where(ratios * mean[base] > 1, PENTAGON, DIGONS)
    last, first = is_pentagon.argmin(), is_pentagon.argmax()
    jump = varied[first] - varied[first - 1] if first > last else np.nan
    metrics = {
        "gap_error_degrees_when_uniform": np.abs(angular_gaps(W[uniform]) - 72).max(),
        "kind_is_pentagon_when_uniform": int(winner_kind[uniform] == PENTAGON),
        "kind_is_digons_when_sparsest": int(winner_kind[sparsest] == DIGONS),
        "varied_norm_when_sparsest": varied[sparsest],
        "varied_norm_jump": jump,
        "neighbour_gap_degrees": neighbour_gap(W[is_pentagon]),
        "kind_follows_lower_curve": (winner_kind == expected).mean(),
        "crossings": [len(r) for of_seed in roots for r in of_seed],
        "octaves_of_coexistence": np.ptp(np.log2(curve_ratios[coexist])) if coexist.any() else 0.0,
        "digons_loss_error": np.abs(two / closed - 1)[np.isfinite(two)].max(initial=0.0),
        "times_sparser": mean[base],
        "times_sparser_per_seed": sparser[:, base],
        "times_sparser_by_baseline": mean,
    }
    return Evaluation(
        metrics=metrics,
        figures={
            "perturbed_pentagon": {
                "ratio": ratios,
                "features": [canonical(model) for model in W],
                "is_digons": winner_kind == DIGONS,
                "loss": arrays["loss"],
                "kind": kind,
                "curve_ratio": curve_ratios,
                "curve_loss": here.T,
                "crossing": 1 / mean[base],
            },
            "pentagon_digon_crossing": {
                "baseline": BASELINES,
                "curve_ratio": curve_ratios,
                "log_loss_ratio": np.log(curve[..., 0] / curve[..., 1]).mean(0),
                "times_sparser": sparser.T,
            },
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """Left: the best solutions laid over one another. Right: every restart's loss, both curves."""
    figure, axes = subplots(1, 2, 2.9, gridspec_kw={"width_ratios": [1, 1.25]})
    _draw_solutions(figure, axes[0, 0], data)
    _draw_losses(axes[0, 1], data)
    panel_labels(axes)
    return figure


def _draw_solutions(figure: Canvas, axis: Axes, data: Mapping[str, Any]) -> None:
    octaves = np.log2(data["ratio"])
    for features, digons, octave in zip(data["features"], data["is_digons"], octaves, strict=True):
        x, y = np.transpose(features)
        axis.scatter(
            x,
            y,
            c=np.full(N, octave),
            vmin=octaves[0],
            vmax=octaves[-1],
            marker="s" if digons else "o",
            cmap=SEQUENTIAL,
            s=12,
            linewidths=0,
            zorder=3,
        )
    for marker, label in (("o", "pentagon"), ("s", "two digons")):
        axis.plot([], [], marker, color="0.4", label=label)
    axis.annotate("varied\nfeature", (0.12, 1.1), xytext=(0.45, 1.25), fontsize=7, va="center")
    axis.axhline(0, color="0.85", linewidth=0.6)
    axis.axvline(0, color="0.85", linewidth=0.6)
    axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[-1, 0, 1])
    axis.set(yticks=[-1, 0, 1], xlabel="hidden space, turned to overlay")
    axis.grid(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handletextpad=0.1)
    ticks = np.arange(np.ceil(octaves[0]), np.floor(octaves[-1]) + 1)
    bar = figure.colorbar(axis.collections[0], ax=axis, shrink=0.75, ticks=ticks)
    bar.ax.set_yticklabels([_times(2**tick) for tick in ticks])
    bar.set_label("relative density of the varied feature")


def _times(ratio: float) -> str:
    return f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}"


def _draw_losses(axis: Axes, data: Mapping[str, Any]) -> None:
    loss, kind = np.array(data["loss"]), np.array(data["kind"])
    ratio = np.broadcast_to(np.array(data["ratio"])[:, None], loss.shape)
    styles = (
        (OTHER, "0.6", "x", "refit, anything else"),
        (PENTAGON, PALETTE[0], "o", "refit, pentagon"),
        (DIGONS, PALETTE[4], "s", "refit, two digons"),
    )
    for which, color, marker, label in styles:
        shown = kind == which
        size = 12 if marker == "x" else 10
        axis.scatter(
            ratio[shown], loss[shown], s=size, c=color, marker=marker, label=label, linewidths=0.8
        )
    for curve, color, label in zip(
        np.array(data["curve_loss"], dtype=float),
        (PALETTE[0], PALETTE[4]),
        ("pentagon, followed", "two digons, followed"),
        strict=True,
    ):
        axis.plot(data["curve_ratio"], curve, color=color, label=label, zorder=1)
    if data["crossing"] is not None:
        axis.axvline(data["crossing"], ymax=0.5, color="0.3", linewidth=0.8, linestyle=":")
        text = f"{1 / data['crossing']:.1f} times\nsparser"
        axis.annotate(
            text,
            (data["crossing"], 0.03),
            xytext=(3, 0),
            fontsize=7,
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
        )
    axis.set(xscale="log", yscale="log", ylabel="loss")
    axis.set(xlabel="relative density of the varied feature", ylim=(0.003, 0.08))
    axis.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4], ["1/8", "1/4", "1/2", "1", "2", "4"])
    axis.set_yticks([0.005, 0.01, 0.02, 0.04], ["0.005", "0.01", "0.02", "0.04"])
    axis.minorticks_off()
    axis.legend(loc="upper left", fontsize=6, handlelength=1.2)


def draw_crossing(data: Mapping[str, Any]) -> Canvas:
    """Left: the loss ratio of the two branches. Right: where it is one, by density."""
    figure, axes = subplots(1, 2, 2.5)
    left, right = axes[0]
    sparser = 1 / np.array(data["curve_ratio"])
    baselines = data["baseline"]
    curves = np.array(data["log_loss_ratio"], dtype=float)
    for baseline, curve, color in zip(baselines, curves, PALETTE, strict=False):
        left.plot(sparser, np.exp(curve), color=color, label=f"{baseline:g}", marker=".")
    left.axhline(1, color="0.3", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlim=(0.9, 8.5), ylim=(0.45, 1.4))
    left.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    left.set_yticks([0.5, 0.7, 1, 1.4], ["0.5", "0.7", "1", "1.4"])
    left.minorticks_off()
    left.set(xlabel="how many times sparser than the others")
    left.set(ylabel="loss of pentagon / of two digons")
    left.legend(title="density of the others", ncols=2, loc="lower right")
    for seeds in np.transpose(np.array(data["times_sparser"], dtype=float)):
        right.plot(baselines, seeds, "o-", color=PALETTE[0], markersize=3)
    right.axhline(2.5, color=PALETTE[4], linestyle="--")
    right.annotate("the paper, at 0.05", (0.02, 2.3), fontsize=7, va="top", color=PALETTE[4])
    right.set(xlabel="density of the others", ylim=(0, None))
    right.set(ylabel="times sparser at the crossing")
    panel_labels(axes)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="perturbed_pentagon",
            title="Made sparse enough, a feature is dropped and the pentagon becomes two digons",
            caption="(a) Best of several restarts at 16 ratios, canonically turned; four features "
            "have density 0.05. (b) Loss of every restart, and of both solutions followed apart: "
            "the curves cross, a first-order transition.",
            original="section 'Perturbing a Single Feature'",
            draw=draw,
        ),
        Figure(
            name="pentagon_digon_crossing",
            title="How much sparser the feature must be depends on how sparse the others are",
            caption="(a) Loss of the pentagon over that of two digons, where both are minima. "
            "(b) The ratio at which they cost the same, one line per seed; dashed, the paper's "
            "2.5, which it states at density 0.05.",
            original="section 'Perturbing a Single Feature'",
            draw=draw_crossing,
        ),
    ),
)
