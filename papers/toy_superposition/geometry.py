"""What the paper reads off a trained W: norms, interference, dimensionality, graphs of features.

Numpy, float64: these run in the evaluate stage. W is [..., m, n]; feature i is its column W_i.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
from jaxtyping import Float

Array = np.ndarray


def norms(W: Float[Array, "*models m n"]) -> Float[Array, "*models n"]:
    """Return ‖W_i‖, how far each feature is represented."""
    return np.linalg.norm(np.asarray(W, dtype=np.float64), axis=-2)


def gram(W: Float[Array, "*models m n"]) -> Float[Array, "*models n n"]:
    """Return WᵀW."""
    W = np.asarray(W, dtype=np.float64)
    return np.swapaxes(W, -1, -2) @ W


def _unit(W: Float[Array, "*models m n"]) -> Float[Array, "*models m n"]:
    length = norms(W)[..., None, :]
    return np.divide(W, length, out=np.zeros(W.shape), where=length > 1e-12)


def cosines(W: Float[Array, "*models m n"]) -> Float[Array, "*models n n"]:
    """Return the cosines between features; zero for a feature without direction."""
    return gram(_unit(W))


def interference(W: Float[Array, "*models m n"]) -> Float[Array, "*models n"]:
    """Return sum_{j≠i} (Ŵ_i·W_j)², how much of other features lies along feature i.

    Section "Basic Results": the colour of the bars; 1 and above means superposition.
    """
    along = np.swapaxes(_unit(W), -1, -2) @ np.asarray(W, dtype=np.float64)
    return (along**2).sum(-1) - norms(W) ** 2


def dimensionality(W: Float[Array, "*models m n"]) -> Float[Array, "*models n"]:
    """Return D_i = ‖W_i‖² / sum_j (Ŵ_i·W_j)², the share of a dimension that feature i has.

    Section "The Geometry of Superposition"; the sum includes j = i. Zero for an absent feature.
    """
    squared = norms(W) ** 2
    total = squared + interference(W)
    return np.divide(squared, total, out=np.zeros(squared.shape), where=total > 1e-12)


def dimensions_per_feature(W: Float[Array, "*models m n"]) -> Float[Array, "*models"]:
    """Return D* = m / ‖W‖_F² (section "The Geometry of Superposition")."""
    return W.shape[-2] / (norms(W) ** 2).sum(-1)


def angular_gaps(W: Float[Array, "*models 2 n"]) -> Float[Array, "*models n"]:
    """Return the angles between features that are neighbours around the circle, in degrees."""
    angle = np.sort(np.degrees(np.arctan2(W[..., 1, :], W[..., 0, :])), axis=-1)
    gaps: Array = np.diff(angle, append=angle[..., :1] + 360, axis=-1)
    return gaps


def components(
    W: Float[Array, "m n"], present: float = 0.5, touching: float = 0.1
) -> list[list[int]]:
    """Return groups of features that interfere, each sorted, the largest first.

    A feature counts if ‖W_i‖ > `present`; two are joined if |Ŵ_i·Ŵ_j| > `touching`. Mutually
    orthogonal groups are the factors of the paper's tegum products.
    """
    kept = np.flatnonzero(norms(W) > present)
    joined = np.abs(cosines(W)[np.ix_(kept, kept)]) > touching
    graph = nx.from_numpy_array(joined)
    groups = [sorted(int(kept[i]) for i in group) for group in nx.connected_components(graph)]
    return sorted(groups, key=lambda group: (-len(group), group))
