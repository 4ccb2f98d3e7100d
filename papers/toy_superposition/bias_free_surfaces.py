"""M: the exact loss surface of two features in one dimension without biases.

Comment by McGrath on the paper: for n = 2, m = 1 and x' = ReLU(WᵀWx) the expected loss is a closed
form in (W_1, W_2), and its minima show a phase besides those of the paper's diagram: at low
sparsity, both features important, W_1 ≈ W_2 ≈ 1/√2. Our derivation: where W_1 and W_2 have the same
sign the ReLU is never active, so for equal importance the minimum is the first principal component
of the second moments [[p/3, p²/4], [p²/4, p/3]], which is (1, 1)/√2 at every density.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.ndimage import minimum_filter
from scipy.optimize import brentq, minimize

from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, PALETTE, SEQUENTIAL, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

PANELS = ((0.1, 1.0), (0.3, 0.5), (0.57, 1.0), (0.9, 1.0), (0.9, 0.1))  # (p, r) of the surfaces
LIMIT = 1.5  # |W_i| up to which the surface is searched and drawn
DENSE = (0.7, 0.8, 0.9, 1.0)  # densities at which the extra phase is checked, with r = 1


class Parameters(Config):
    """What a profile sets."""

    points: int
    """Grid points per axis of a surface."""
    cells: int
    """Points per axis of the map over importance and density."""


def _alone(w: Array, other: Array) -> Array:
    """E[(x'_1 - x_1)²] summed over 'only x_1 active' and 'only x_2 active'."""
    return np.asarray((1 - w**2) ** 2 / 3 + np.maximum(w * other, 0) ** 2 / 3)


def _both(w: Array, other: Array) -> Array:
    """E[(x'_1 - x_1)²] when both are active: x'_1 = ReLU(w² x_1 + w other x_2)."""
    q, s = w**2, w * other
    same = (1 - q) ** 2 / 3 - (1 - q) * s / 2 + s**2 / 3
    # Opposite signs: x'_1 = w² ReLU(x_1 - t x_2), integrated over x_1 > t x_2.
    t = np.abs(np.divide(other, w, out=np.full(np.shape(q), 1e9), where=q > 0))
    low, high = np.minimum(t, 1), np.maximum(t, 1)
    crossed = np.where(t < 1, 1 / 3 - low / 4 + low**3 / 24, 1 / (8 * high))
    squared = np.where(t < 1, (4 - 6 * low + 4 * low**2 - low**3) / 12, 1 / (12 * high))
    return np.where(s >= 0, same, 1 / 3 - 2 * q * crossed + q**2 * squared)


def bias_free_loss(
    W1: Float[Array, "*points"] | float,
    W2: Float[Array, "*points"] | float,
    density: float,
    importance: float,
) -> Float[Array, "*points"]:
    """Return the exact expected loss of x' = ReLU(WᵀWx), the second feature of importance r."""
    first, second = np.broadcast_arrays(np.asarray(W1, float), np.asarray(W2, float))
    p, r = density, importance
    alone = _alone(first, second) + r * _alone(second, first)
    both = _both(first, second) + r * _both(second, first)
    return np.asarray(p * (1 - p) * alone + p**2 * both)


def minima(density: float, importance: float, points: int) -> Float[Array, "found 3"]:
    """Return (W_1, W_2, loss) of the local minima with W_1 >= 0, the lowest first.

    The surface is even in W, so that half of the plane is enough.
    """
    grid = np.linspace(-LIMIT, LIMIT, points)
    W1, W2 = np.meshgrid(grid, grid, indexing="ij")
    surface = bias_free_loss(W1, W2, density, importance)
    lowest = (surface == minimum_filter(surface, size=3)) & (W1 >= 0)
    found: list[Array] = []
    for start in np.stack([W1[lowest], W2[lowest]], 1):
        end = minimize(
            lambda w: float(bias_free_loss(w[0], w[1], density, importance)),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-13},
        )
        W = end.x if end.x[0] >= 0 else -end.x
        if all(np.abs(W - other[:2]).max() > 1e-3 for other in found):
            found.append(np.array([*W, end.fun]))
    table = np.stack(found)
    return table[table[:, 2].argsort()]


def pair_density_limit() -> float:
    """Return the density above which, for r = 1, same directions beat the antipodal pair.

    With W = (w, -w) the loss is a parabola in w², lowest at (8 - 5p) / (8 - 6p); with W = (1, 1)/√2
    it is p/3 - p²/4. Here their difference vanishes.
    """

    def difference(p: float) -> float:
        w = np.sqrt((8 - 5 * p) / (8 - 6 * p))
        return float(bias_free_loss(w, -w, p, 1.0)) - (p / 3 - p**2 / 4)

    return float(brentq(difference, 0.3, 0.9))


def run(config: Parameters, run: Run) -> Arrays:
    """Tabulate the surfaces, their minima, and the direction of the best W over (r, p)."""
    grid = np.linspace(-LIMIT, LIMIT, config.points)
    W1, W2 = np.meshgrid(grid, grid, indexing="ij")
    surfaces = np.stack([bias_free_loss(W1, W2, p, r) for p, r in PANELS])
    found = [minima(p, r, config.points) for p, r in PANELS]
    table = np.full((len(PANELS), max(map(len, found)), 3), np.nan)
    for row, rows in zip(table, found, strict=True):
        row[: len(rows)] = rows
    importance = 10 ** np.linspace(-1, 1, config.cells)
    density = np.linspace(0.02, 1, config.cells)
    best = np.array([[minimum_on_grid(p, r) for r in importance] for p in density])
    dense = np.array([minima(p, 1.0, config.points)[0] for p in DENSE])
    near = pair_density_limit() + np.array([-0.01, 0.01])
    return {
        "grid": grid,
        "surfaces": surfaces,
        "minima": table,
        "importance": importance,
        "density": density,
        "best": best,
        "dense": dense,
        "around_limit": np.array([minima(p, 1.0, config.points)[0] for p in near]),
    }


def minimum_on_grid(density: float, importance: float) -> tuple[float, float]:
    """Return (W_1, W_2) of the global minimum with W_1 >= 0, to the 0.03 of a coarse grid."""
    first, second = np.meshgrid(
        np.linspace(0, LIMIT, 51), np.linspace(-LIMIT, LIMIT, 101), indexing="ij"
    )
    index = bias_free_loss(first, second, density, importance).argmin()
    return float(first.flat[index]), float(second.flat[index])


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Read off the extra phase at r = 1, and where it takes over."""
    dense, before_after = arrays["dense"], arrays["around_limit"]
    best = arrays["best"]
    return Evaluation(
        metrics={
            "dense_minimum": dense[-1, :2],
            "dense_minima_error": np.abs(dense[:, :2] - np.sqrt(0.5)).max(),
            "dense_loss": dense[:, 2],
            "antipodal_until": pair_density_limit(),
            "product_before_limit": before_after[0, 0] * before_after[0, 1],
            "product_after_limit": before_after[1, 0] * before_after[1, 1],
            "sparse_minimum": arrays["minima"][0, 0, :2],
            "unequal_minimum": arrays["minima"][1, 0, :2],
        },
        figures={
            "bias_free_surfaces": {
                "panels": PANELS,
                "grid": arrays["grid"],
                "surfaces": arrays["surfaces"],
                "minima": [rows[np.isfinite(rows[:, 0]), :2] for rows in arrays["minima"]],
                "importance": arrays["importance"],
                "density": arrays["density"],
                "angle": np.degrees(np.arctan2(best[..., 1], best[..., 0])),
            }
        },
    )


def draw(data: Mapping[str, Any]) -> Canvas:
    """Contours of the surfaces with their minima, and the direction of the best W."""
    figure, axes = subplots(2, 3, 4.0)
    grid = data["grid"]
    for axis, (p, r), surface, found in zip(
        axes.flat, data["panels"], data["surfaces"], data["minima"], strict=False
    ):
        excess = np.transpose(surface) / np.min(surface)
        axis.contourf(
            grid,
            grid,
            np.log10(excess),
            levels=np.linspace(0, 1, 15),
            cmap=SEQUENTIAL,
            extend="max",
        )
        # The surface is even, so every minimum stands for two.
        points = np.concatenate([found, -np.array(found)])
        axis.plot(*points.T, "o", color="white", markeredgecolor="black", label="local minimum")
        lowest = points[[0, len(found)]].T
        axis.plot(
            *lowest,
            "*",
            color=PALETTE[4],
            markeredgecolor="white",
            markersize=10,
            label="global minimum",
        )
        axis.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axis.set_title(f"p = {p:g}, r = {r:g}", fontsize=7.5, loc="right")
        axis.set(xlabel="$W_1$", ylabel="$W_2$")
        axis.grid(False)
    last = axes.flat[-1]
    mesh = last.pcolormesh(
        data["importance"], data["density"], data["angle"], cmap=DIVERGING, vmin=-90, vmax=90,
        shading="nearest", rasterized=True,
    )  # fmt: skip
    last.set(xscale="log", xlabel="importance r", ylabel="density p")
    last.set(xticks=[0.1, 1, 10], xticklabels=["0.1", "1", "10"])
    last.set_title("angle of best W", fontsize=7.5, loc="right")
    last.set_box_aspect(1)
    last.grid(False)
    bar = figure.colorbar(mesh, ax=last, ticks=[-90, -45, 0, 45, 90], shrink=0.9)
    bar.ax.set_yticklabels(["−90°", "−45° pair", "0° first", "45° same", "90° second"], fontsize=6)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    panel_labels(axes)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="bias_free_surfaces",
            title="Without biases, a dense model stores both features in one direction",
            caption="Exact loss of x' = ReLU(WᵀWx), n = 2, m = 1, over (W_1, W_2), as log10 of its "
            "ratio to the minimum (dark is low, up to tenfold); right below, the direction of the "
            "best W by importance and density.",
            original="comments, McGrath's exact loss surfaces",
            draw=draw,
        ),
    ),
)
