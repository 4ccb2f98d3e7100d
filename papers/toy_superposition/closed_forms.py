"""Exact losses of the paper's models: section "Mathematical Understanding", with its conditions.

Numpy, float64. W is [..., m, n]; feature i is its column W_i. Losses are sums over features of
importance times squared error, as everywhere in this paper.

The paper writes the linear model's loss as sum_i I_i (1 - ‖W_i‖²)² + sum_{i≠j} I_j (W_i·W_j)², up
to a factor and without saying for which inputs. With M = WᵀW and D = diag(I) it is
tr(D (1-M) (1-M)), the loss of x' = Mx for any inputs with E[x xᵀ] = 1. Hence, exactly:

- with the best bias, b = (1-M) E[x], the loss is v times the formula if features are uncorrelated
  with variance v; of independent features, U[0,1) with probability p, v = p/3 - p²/4;
- without bias it is 1/n times the formula if exactly one feature is active, with the value 1.

By Eckart and Young the formula is at least sum_{i>m} I_i, which representing the m most important
features without interference reaches: no density p favours superposition.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import comb

from papers.toy_superposition.geometry import gram

Array = np.ndarray


def linear_loss(
    W: Float[Array, "*models m n"], importance: Float[Array, " n"]
) -> Float[Array, "*models"]:
    """Return the paper's sum_i I_i (1 - ‖W_i‖²)² + sum_{i≠j} I_j (W_i·W_j)²."""
    missing = np.eye(len(importance)) - gram(W)
    return np.asarray((missing**2).sum(-2) @ importance)


def linear_optimum(importance: Float[Array, " n"], m: int) -> float:
    """Return the least value of `linear_loss` in m dimensions: the n-m least importances."""
    return float(np.sort(importance)[: max(len(importance) - m, 0)].sum())


def variance(density: Float[Array, "*densities"]) -> Float[Array, "*densities"]:
    """Return the variance p/3 - p²/4 of a feature that is U[0,1) with probability p, else 0."""
    return np.asarray(density / 3 - density**2 / 4)


def linear_expected_loss(
    W: Float[Array, "*models m n"],
    b: Float[Array, "*models n"],
    importance: Float[Array, " n"],
    density: Float[Array, "*models"],
) -> Float[Array, "*models"]:
    """Return the expected loss of x' = WᵀWx + b on independent sparse uniform features.

    It is v times `linear_loss`, and what a bias other than the best one costs.
    """
    missing = np.eye(len(importance)) - gram(W)
    best_bias = missing.sum(-1) * density[..., None] / 2
    wrong_bias = (b - best_bias) ** 2 @ importance
    return np.asarray(variance(density) * linear_loss(W, importance) + wrong_bias)


def one_hot_loss(
    W: Float[Array, "*models m n"],
    b: Float[Array, "*models n"],
    importance: Float[Array, " n"],
    output_relu: bool,
) -> Float[Array, "*models"]:
    """Return the loss when exactly one feature is active, each as often, with the value 1."""
    n = len(importance)
    output = gram(W) + np.asarray(b, dtype=np.float64)[..., :, None]
    if output_relu:
        output = np.maximum(output, 0)
    return np.asarray(((output - np.eye(n)) ** 2).sum(-1) @ importance / n)


def one_hot_solution(n: int) -> tuple[Float[Array, "2 n"], Float[Array, " n"]]:
    """Return W and b of a ReLU output model in 2 dimensions without any loss on one-hot inputs.

    A regular polygon: the bias removes the interference c of neighbours, and ‖W_i‖² = 1/(1-cos)
    makes up for it. A linear model loses at least n - m of n features there.
    """
    angle = 2 * np.pi / n
    squared = 1 / (1 - np.cos(angle))
    corner = angle * np.arange(n)
    W = np.sqrt(squared) * np.stack([np.cos(corner), np.sin(corner)])
    return W, np.full(n, -squared * np.cos(angle))


def empty_loss(
    b: Float[Array, "*models n"], importance: Float[Array, " n"]
) -> Float[Array, "*models"]:
    """Return L_0 = sum_i I_i ReLU(b_i)², the loss of the input without active features.

    The paper prints it without I_i, which the loss that it is a part of has.
    """
    return np.asarray(np.maximum(b, 0) ** 2 @ importance)


class OneSparse(NamedTuple):
    """The two sums of L_1, which is their sum."""

    benefit: Float[Array, "*models"]
    """sum_i I_i ∫ (x - ReLU(‖W_i‖² x + b_i))² dx: the error of the active feature."""
    interference: Float[Array, "*models"]
    """sum_{i≠j} I_j ∫ ReLU(W_i·W_j x + b_j)² dx: what it sets off in the others."""


def one_sparse_loss(
    W: Float[Array, "*models m n"],
    b: Float[Array, "*models n"],
    importance: Float[Array, "*#models n"],
) -> OneSparse:
    """Return L_1 of the ReLU output model: one active feature, U[0,1), summed over which one."""
    slope = gram(W)  # [..., j, i]: what feature i does to the output j
    offset = np.broadcast_to(np.asarray(b, dtype=np.float64)[..., :, None], slope.shape)
    first, second = _relu_moments(slope, offset)
    own = np.eye(slope.shape[-1], dtype=bool)
    error = np.where(own, 1 / 3 - 2 * first + second, 0).sum(-1)
    others = np.where(own, 0, second).sum(-1)
    return OneSparse(*(np.asarray((part * importance).sum(-1)) for part in (error, others)))


def _relu_moments(
    slope: Float[Array, "*shape"], offset: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return ∫ x r(x) dx and ∫ r(x)² dx over [0, 1], for r(x) = ReLU(slope x + offset)."""
    # The line is positive on one interval [start, end] of [0, 1], which may be empty.
    flat = np.abs(slope) < 1e-12
    root = np.clip(-offset / np.where(flat, 1, slope), 0, 1)
    start = np.where(flat | (slope < 0), 0, root)
    end = np.where(flat, offset > 0, np.where(slope < 0, root, 1))
    powers = [(end**k - start**k) / k for k in (1, 2, 3)]
    first = slope * powers[2] + offset * powers[1]
    second = slope**2 * powers[2] + 2 * slope * offset * powers[1] + offset**2 * powers[0]
    return first, second


def active_probability(
    n: int, density: Float[Array, " densities"]
) -> Float[Array, "densities counts"]:
    """Return how likely 0, …, n of n independent features are active: C(n,k) p^k (1-p)^(n-k).

    The paper's L_k sums over supports: weighted with p^k (1-p)^(n-k) it is this probability times
    the mean loss given k active features.
    """
    k, p = np.arange(n + 1), np.asarray(density, dtype=np.float64)[:, None]
    return comb(n, k) * p**k * (1 - p) ** (n - k)
