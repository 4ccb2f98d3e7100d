"""Exact losses of the candidate solutions behind the paper's phase diagrams, and where they tie.

Section "Superposition as a Phase Change" and its notebook: n features in n - 1 dimensions, the
last ("extra") one of importance r, the others of importance 1, each U[0,1) with probability p and
else 0. A candidate either ignores a feature, whose output is then the constant mean p/2, or stores
two of them as an antipodal pair without biases, so that it errs only when both are active. The
losses follow from three moments: E[(x - p/2)²] = p/3 - p²/4 of an ignored feature, and
p² E[min(x, y)²] = p²/6 for each member of a pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize

Array = np.ndarray

TRIPLE_POINT = 4 / 7
"""Density at which, for r = 1, ignoring either feature and an antipodal pair lose the same."""


class Candidate(NamedTuple):
    """A solution x' = ReLU(Gx + b) of the theory."""

    name: str
    gram: Float[Array, "n n"]
    """G = WᵀW, of rank n - 1."""
    ignored: int | None
    """The feature without direction, whose bias is p/2; all other biases are 0."""
    pair: tuple[int, int] | None
    """The features stored as x_i - x_j and x_j - x_i."""


def candidates(n: int) -> tuple[Candidate, ...]:
    """Return the paper's solutions for n = 2 (three of them) or n = 3 (four)."""
    if n not in (2, 3):
        raise ValueError(f"the theory covers 2 and 3 features, not {n}")
    found = [_ignore("ignore extra", n, n - 1), _ignore("ignore first", n, 0)]
    found.append(_pair("pair with extra", n, (n - 2, n - 1)))
    return (*found, _pair("pair of others", n, (0, 1))) if n == 3 else tuple(found)


def _ignore(name: str, n: int, feature: int) -> Candidate:
    gram = np.eye(n)
    gram[feature, feature] = 0
    return Candidate(name, gram, feature, None)


def _pair(name: str, n: int, pair: tuple[int, int]) -> Candidate:
    gram = np.eye(n)
    gram[pair, pair[::-1]] = -1
    return Candidate(name, gram, None, pair)


def candidate_losses(
    n: int, importance: Float[Array, "*r"], density: Float[Array, "*p"]
) -> Float[Array, "*cells candidates"]:
    """Return each candidate's expected loss, given r of the extra feature and p of all."""
    r, p = np.broadcast_arrays(importance, density)
    ignored, member = p / 3 - p**2 / 4, p**2 / 6
    losses = [r * ignored, ignored, (1 + r) * member]
    return np.stack([*losses, 2 * member][: len(candidates(n))], -1)


def phases(
    n: int, importance: Float[Array, "*cells"], density: Float[Array, "*cells"]
) -> Int[Array, "*cells"]:
    """Return the index of the candidate with the lowest loss."""
    return candidate_losses(n, importance, density).argmin(-1)


def pair_boundary(importance: Float[Array, "*cells"]) -> Float[Array, "*cells"]:
    """Return the density below which a pair with the extra feature beats ignoring one of its two.

    p = 4ρ / (2 + 5ρ) with ρ = min(r, 1/r); solved for r < 1 this is r = 2p / (4 - 5p).
    """
    rho = np.minimum(importance, 1 / np.asarray(importance))
    return 4 * rho / (2 + 5 * rho)


def boundaries(
    n: int, importance: tuple[float, float], density: tuple[float, float], points: int = 60
) -> dict[str, Float[Array, "vertices 2"]]:
    """Return the outline of each candidate's region as vertices (r, p), by candidate.

    The rectangle given by the ranges of r and p has to hold the triple point.
    """
    (left, right), (low, high) = importance, density
    rise = np.geomspace(left, 1, points)
    rise = np.stack([rise, pair_boundary(rise)], 1)
    outline: dict[str, list] = {"ignore extra": [rise, [(1, high), (left, high)]]}
    if n == 2:
        fall = np.geomspace(1, right, points)
        fall = np.stack([fall, pair_boundary(fall)], 1)
        outline["ignore first"] = [fall, [(right, high), (1, high)]]
        outline["pair with extra"] = [rise, fall, [(right, low), (left, low)]]
    else:
        edge = [(1, TRIPLE_POINT), (right, TRIPLE_POINT)]
        outline["ignore first"] = [edge, [(right, high), (1, high)]]
        outline["pair with extra"] = [rise, [(1, low), (left, low)]]
        outline["pair of others"] = [edge, [(right, low), (1, low)]]
    return {name: np.concatenate(parts) for name, parts in outline.items()}


def near_boundary(
    n: int,
    importance: Float[Array, "*cells"],
    density: Float[Array, "*cells"],
    decades: float,
) -> Bool[Array, "*cells"]:
    """Return which cells have another phase `decades` away in the plane (log10 r, log10 p).

    Only a ring of 64 points is looked at, since no region is small enough to hide inside it.
    """
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    angle = angle.reshape(-1, *[1] * np.ndim(importance + density))
    around = phases(
        n,
        importance * 10 ** (decades * np.cos(angle)),
        np.minimum(density * 10 ** (decades * np.sin(angle)), 1),
    )
    return (around != phases(n, importance, density)).any(0)


def biased_pair_loss(
    square: float | Array, bias: float | Array, density: float | Array
) -> float | Array:
    """Return the loss of W = (w, -w), b = (β, β) for n = 2, m = 1, r = 1, given w² and β.

    The theory's pair is w² = 1, β = 0. Exact for 0 <= β <= w², by integrating
    (ReLU(w²(x - y) + β) - x)² over each support and doubling it, as both outputs are alike.
    """
    q, b, p = square, bias, density
    alone = (1 - q) ** 2 / 3 - (1 - q) * b + b**2
    other = b**3 / (3 * q)
    squared = ((q + b) ** 4 - 2 * b**4) / (12 * q**2)
    crossed = (((q + b) ** 3 - b**3) / (3 * q) - squared) / (2 * q)
    both = 1 / 3 - 2 * crossed + squared
    return 2 * ((1 - p) ** 2 * b**2 + p * (1 - p) * (alone + other) + p**2 * both)


def best_biased_pair(density: float) -> tuple[float, float, float]:
    """Return |w|, β and the loss of the best antipodal pair with biases, at r = 1.

    For every p < 1 it loses less than ignoring a feature does, and at p = 1 as much: there
    w² = β = 1/2, the ReLU is never active, and a linear model may drop any direction of the two.
    So with biases the antipodal phase has no apex below p = 1 on the line r = 1.
    """

    def loss(v: Array) -> float:
        return float(biased_pair_loss(v[0], v[0] * v[1], density))

    found = minimize(loss, [0.8, 0.2], bounds=[(0.05, 2), (0, 1)], tol=1e-14)
    square, share = found.x
    return float(np.sqrt(square)), float(square * share), float(found.fun)
