"""E3: the polytopes of the paper, constructed, with their exact fractions of a dimension.

Section "The Geometry of Superposition" (uniform polytopes, tegum products, and the link between
polytopes and low-rank matrices). Nothing is trained: the columns of W are the vertices, and D_i =
‖W_i‖² / sum_j (Ŵ_i·W_j)² has to be the fraction at which the paper draws the line. The same list
names the polytopes that trained models form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from papers.toy_superposition.geometry import cosines, dimensionality, gram
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import DIVERGING, PALETTE, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

ALIKE = 0.1  # largest difference between two cosines that count as the same


def polygon(vertices: int) -> Float[Array, "2 vertices"]:
    """Return the vertices of a regular polygon on the unit circle."""
    angle = 2 * np.pi * np.arange(vertices) / vertices
    return np.stack([np.cos(angle), np.sin(angle)])


def tetrahedron() -> Float[Array, "3 4"]:
    """Return every other corner of a cube, at unit length."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return corners.T / np.sqrt(3)


def square_antiprism() -> Float[Array, "3 8"]:
    """Return two squares, turned by 45 degrees against each other, at heights ±√(1/3).

    At this height the vertices spread equally over the three dimensions, Σ v vᵀ = 8/3 I, so that
    D is 3/8 exactly; with all edges of one length it would be .366.
    """
    turned = polygon(8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    return np.vstack([np.sqrt(2 / 3) * turned, np.sqrt(1 / 3) * np.repeat([1.0, -1.0], 4)])


def tegum(*factors: Float[Array, "_ _"]) -> Float[Array, "m n"]:
    """Return the tegum product: the vertices of each factor, in dimensions of their own."""
    m, n = np.sum([factor.shape for factor in factors], axis=0)
    product = np.zeros((m, n))
    row = column = 0
    for factor in factors:
        rows, columns = factor.shape
        product[row : row + rows, column : column + columns] = factor
        row, column = row + rows, column + columns
    return product


UNIFORM: dict[str, Float[Array, "m n"]] = {
    "tetrahedron": tetrahedron(),
    "triangle": polygon(3),
    "digon": np.array([[1.0, -1.0]]),
    "pentagon": polygon(5),
    "square antiprism": square_antiprism(),
}
"""The vertices of the polytopes at the paper's lines, as columns."""

FRACTIONS = {
    "tetrahedron": Fraction(3, 4),
    "triangle": Fraction(2, 3),
    "digon": Fraction(1, 2),
    "pentagon": Fraction(2, 5),
    "square antiprism": Fraction(3, 8),
}
"""The lines of the paper: the fraction of a dimension that each vertex has."""

COLOURS = dict(zip(FRACTIONS, [PALETTE[i] for i in (4, 2, 0, 3, 1)], strict=True))
"""The colour of each polytope in all figures."""

FACTORS = {
    "triangular bipyramid": ("triangle", "digon"),
    "pentagonal bipyramid": ("pentagon", "digon"),
    "octahedron": ("digon", "digon", "digon"),
}
"""The paper's tegum products in three dimensions."""


def constructed() -> dict[str, Float[Array, "m n"]]:
    """Return the vertices of every polytope and tegum product, by name."""
    products = {
        name: tegum(*(UNIFORM[factor] for factor in factors)) for name, factors in FACTORS.items()
    }
    return UNIFORM | products


def expected(name: str) -> Float[Array, " n"]:
    """Return the paper's fraction of a dimension for each vertex."""
    factors = FACTORS.get(name, (name,))
    return np.concatenate(
        [np.full(UNIFORM[part].shape[1], float(FRACTIONS[part])) for part in factors]
    )


def identify(W: Float[Array, "m n"]) -> str | None:
    """Name the uniform polytope that features form, up to rotation, order and lengths, or None.

    The normalised Gram matrices have to agree up to a permutation. Every vertex of a uniform
    polytope sees the same cosines, so each feature's cosines are sorted and compared with those.
    """
    seen = np.sort(cosines(W), axis=1)
    for name, ideal in UNIFORM.items():
        if ideal.shape[1] == len(seen):
            away = np.abs(seen - np.sort(cosines(ideal)[0]))
            if away.max() <= ALIKE:
                return name
    return None


def edges(W: Float[Array, "m n"]) -> list[tuple[int, int]]:
    """Return the edges of a polytope: no other vertex reaches as far along v_i + v_j."""
    reach = gram(W)
    n = len(reach)
    found = []
    for i in range(n):
        for j in range(i + 1, n):
            others = np.delete(reach[i] + reach[j], [i, j])
            if others.max(initial=-np.inf) < reach[i, i] + reach[i, j] - 1e-9:
                found.append((i, j))
    return found


class Parameters(Config):
    """There is nothing to set."""


def run(config: Parameters, run: Run) -> Arrays:
    """Construct the polytopes: W of each, by name."""
    return constructed()


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Compare each vertex's D with the paper's fraction; sum them; rank and spectrum of WᵀW."""
    metrics, drawn = {}, {}
    for name, W in arrays.items():
        D, spectrum = dimensionality(W), np.linalg.eigvalsh(gram(W))
        metrics[name.replace(" ", "_")] = {
            "dimensionality": D,
            "fraction_error": np.abs(D - expected(name)).max(),
            "sum": D.sum(),
            "sum_error": abs(D.sum() - len(W)),
            "rank": int((spectrum > 1e-9).sum()),
            "least_eigenvalue": np.abs(spectrum[: -len(W)]).max(initial=0.0),
        }
        drawn[name] = {"W": W, "gram": gram(W), "dimensionality": D}
    return Evaluation(metrics=metrics, figures={"polytopes": {"polytopes": drawn}})


def project(W: Float[Array, "m n"]) -> tuple[Float[Array, "2 n"], Float[Array, " n"]]:
    """Return where vertices appear on paper, and how near to the viewer they are.

    One dimension lies along the first axis, three are seen from above and a little to the side.
    """
    turn, tilt = np.radians(20), np.radians(22)
    x, y, z = np.vstack([W, np.zeros((3 - len(W), W.shape[1]))])
    if len(W) < 3:
        return np.stack([x, y]), np.zeros(W.shape[1])
    x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    return np.stack([x, np.cos(tilt) * z + np.sin(tilt) * y]), np.sin(tilt) * z - np.cos(tilt) * y


def draw(data: Mapping[str, Any]) -> Canvas:
    """Two rows of polytopes, each over its Gram matrix."""
    contents = data["polytopes"]
    columns = -(-len(contents) // 2)
    figure, axes = subplots(4, columns, 6.6, height_ratios=(1.25, 1, 1.25, 1))
    for k, (name, content) in enumerate(contents.items()):
        row, column = 2 * (k // columns), k % columns
        _draw_polytope(axes[row, column], name, content)
        panel = axes[row + 1, column]
        panel.imshow(content["gram"], cmap=DIVERGING, vmin=-1, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
    figure.colorbar(
        axes[1, 0].images[0],
        ax=axes,
        location="bottom",
        label="Gram matrix  $W_i·W_j$",
        shrink=0.5,
        aspect=35,
    )
    return figure


def _draw_polytope(panel: Axes, name: str, content: Mapping[str, Any]) -> None:
    """Draw vertices, edges (dotted at the back) and the sum of the fractions."""
    W, D = np.array(content["W"]), np.array(content["dimensionality"])
    factors = FACTORS.get(name, (name,))
    sizes = [UNIFORM[factor].shape[1] for factor in factors]
    place, near = project(W)
    for i, j in edges(W):
        style = ":" if near[i] + near[j] < -0.4 else "-"
        panel.plot(*place[:, [i, j]], color="0.55", linewidth=0.8, linestyle=style)
    for x, y in place.T:
        panel.plot([0, x], [0, y], color="0.85", linewidth=0.8, zorder=1)
    colours = np.repeat([COLOURS[factor] for factor in factors], sizes)
    panel.scatter(place[0], place[1], c=list(colours), s=26, zorder=3)
    panel.plot(0, 0, "+", color="0.4", markersize=4)
    panel.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    panel.axis("off")
    parts: Counter[Fraction] = Counter()
    for factor, size in zip(factors, sizes, strict=True):
        parts[FRACTIONS[factor]] += size
    total = " + ".join(f"{size}×{fraction}" for fraction, size in parts.items())
    panel.set_title(f"{name}\n{total} = {D.sum():.0f}", fontsize=7)


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="polytopes",
            title="Polytopes give each feature an exact fraction of a dimension",
            caption="Constructed, not trained: the unit vectors W_i of each polytope and of three "
            "tegum products, and their Gram matrices, whose rank is the number of dimensions. "
            "Each vertex has the stated fraction of a dimension; together they have all of them. "
            "Vertices of different factors (colours) do not interfere.",
            original="section 'The Geometry of Superposition', uniform polytopes, tegum products "
            "and low-rank matrices",
            draw=draw,
        ),
    ),
)
