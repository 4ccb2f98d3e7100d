"""Pearson correlation between columns of two sparse matrices: all of them, or in pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.sparse import csc_matrix

from shared.errors import UserError


def _moments(
    columns: csc_matrix, observations: int
) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " columns"]]:
    """Return the mean and the standard deviation of every column."""
    sums = np.asarray(columns.sum(0)).ravel()
    squares = np.asarray(columns.multiply(columns).sum(0)).ravel()
    mean = sums / observations
    variance = squares / observations - mean**2
    # Rounding leaves a constant column a little above or below zero.
    return mean, np.sqrt(np.where(variance > 1e-12 * squares / observations, variance, 0))


def pearson(
    left: csc_matrix, right: csc_matrix, observations: int | None = None
) -> Float64[np.ndarray, "left right"]:
    """Return the correlation of each column of `left` with each column of `right`.

    cov(x, y) = Σxy / n − x̄ȳ, so that only entries that are not zero are visited, yet both columns
    are centred. In float64.

    Args:
        left: [rows, left] activations.
        right: [rows, right] activations of the same rows.
        observations: n, by default the number of rows; less where some empty rows hold no
            observation, such as those of position 0.

    Returns:
        Correlations in [-1, 1]; 0 where a column does not vary.

    Raises:
        UserError: the numbers of rows differ.
    """
    if left.shape[0] != right.shape[0]:
        raise UserError(
            f"correlation needs the same rows, but there are {left.shape[0]} and {right.shape[0]}"
        )
    n = left.shape[0] if observations is None else observations
    left, right = left.astype(np.float64), right.astype(np.float64)
    left_mean, left_deviation = _moments(left, n)
    right_mean, right_deviation = _moments(right, n)
    covariance = (left.T @ right).toarray() / n - np.outer(left_mean, right_mean)
    return _divide(covariance, np.outer(left_deviation, right_deviation))


def paired_pearson(
    left: csc_matrix, right: csc_matrix, observations: int | None = None
) -> Float64[np.ndarray, " pairs"]:
    """Return the correlation of each column of `left` with the same column of `right`.

    As `pearson`, without the pairs that nobody asks for.

    Raises:
        UserError: the matrices are not of one shape.
    """
    if left.shape != right.shape:
        raise UserError(
            f"correlation in pairs needs one shape, but there are {left.shape} and {right.shape}"
        )
    n = left.shape[0] if observations is None else observations
    left, right = left.astype(np.float64), right.astype(np.float64)
    left_mean, left_deviation = _moments(left, n)
    right_mean, right_deviation = _moments(right, n)
    covariance = np.asarray(left.multiply(right).sum(0)).ravel() / n - left_mean * right_mean
    return _divide(covariance, left_deviation * right_deviation)


def _divide(
    covariance: Float64[np.ndarray, "*shape"], scale: Float64[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Return correlations; 0 where a column does not vary."""
    result = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return np.clip(result, -1, 1)
