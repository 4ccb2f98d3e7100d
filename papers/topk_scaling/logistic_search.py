"""The best of many latents for a binary task: the least cross-entropy of a 1-d logistic regression.

Section 4.2: min over latents i and (w, b) of −E[y log σ(w z_i + b) + (1 − y) log σ(−w z_i − b)].
Here the two classes of a task count one half each, as in a balanced data set, so that w = 0 gives
log 2 for every task, and all values are in nats.

The minimum over the latents is exact, though few of them are fitted to the tokens. The activations
of a latent are cut into bins, and the tokens of a class in a bin are replaced by their mean. The
loss of a token is convex in z, so that no (w, b) has a lower loss on the tokens than on their means
(Jensen): the least loss on the means, which are few, bounds that on the tokens from below. Latents
are fitted to the tokens by rising bound, until the next bound is not below the best fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import csc_array, csr_array
from torch import Tensor

CHANCE = float(np.log(2))
"""The cross-entropy of w = b = 0."""
TOLERANCE = 1e-5
"""Nats by which the result may be above the minimum."""
ITERATIONS = 200
"""Newton steps and halvings; separable classes, the slowest, take some 20."""
BINS = 8
"""Per latent, of its activations: with them little more than one latent is fitted for a task."""
BLOCK = 1 << 17
"""Points for which bounds are computed at a time: what a processor's cache holds."""


class Points(NamedTuple):
    """Weighted points of several regressions; those that only fill a row have weight 0."""

    z: Float64[Tensor, "fits points"]
    sign: Float64[Tensor, "fits points"]
    """1 where y is true, else −1."""
    weight: Float64[Tensor, "fits points"]


class Fits(NamedTuple):
    """Logistic regressions: y is true with probability σ(w z + b)."""

    w: Float64[Tensor, " fits"]
    b: Float64[Tensor, " fits"]
    loss: Float64[Tensor, " fits"]


def fit(points: Points) -> Fits:
    """Minimise Σ weight · log(1 + exp(−sign (w z + b))) of every row, without a penalty.

    Newton's method with halved steps. Where the classes can be separated the minimum is at infinite
    w: the result has a finite one, and a loss above the infimum by less than TOLERANCE.
    """
    rms = (points.weight * points.z.square()).sum(1).sqrt()
    scale = torch.where(rms > 0, rms, 1.0)
    z, sign, weight = points.z / scale[:, None], points.sign, points.weight
    count = len(z)
    found = torch.zeros(count, 3, dtype=torch.float64)  # w, b, loss
    rows = torch.arange(count)
    at, loss = torch.zeros(count, 2, dtype=torch.float64), torch.full((count,), torch.inf).double()
    step = torch.zeros_like(at)
    for _ in range(ITERATIONS):
        trial = at + step
        margin = sign * (z * trial[:, :1] + trial[:, 1:])
        wrong = torch.sigmoid(-margin)
        value = (weight * torch.nn.functional.softplus(-margin)).sum(1)
        pull, curve = weight * wrong, weight * wrong * (1 - wrong)
        gradient = torch.stack([-(pull * sign * z).sum(1), -(pull * sign).sum(1)], 1)
        ww, wb, bb = ((curve * power).sum(1) for power in (z.square(), z, torch.ones_like(z)))
        better = value <= loss
        newton, decrement = _newton(gradient, ww, wb, bb)
        at = torch.where(better[:, None], trial, at)
        loss = torch.where(better, value, loss)
        step = torch.where(better[:, None], newton, step / 2)
        done = better & (decrement < TOLERANCE / 10) | (~better & (step.abs().amax(1) < 1e-9))
        found[rows] = torch.cat([at, loss[:, None]], 1)
        if done.all():
            break
        if done.any():
            left = ~done
            rows, z, sign, weight = rows[left], z[left], sign[left], weight[left]
            at, loss, step = at[left], loss[left], step[left]
    return Fits(found[:, 0] / scale, found[:, 1], found[:, 2])


def _newton(
    gradient: Float64[Tensor, "fits 2"],
    ww: Float64[Tensor, " fits"],
    wb: Float64[Tensor, " fits"],
    bb: Float64[Tensor, " fits"],
) -> tuple[Float64[Tensor, "fits 2"], Float64[Tensor, " fits"]]:
    """Return Newton's step and what it would gain, of the Hessian [[ww, wb], [wb, bb]]."""
    # Where z does not vary the Hessian is singular: with this it is not, so that steps lead down.
    ww, bb = (diagonal * (1 + 1e-10) + 1e-14 for diagonal in (ww, bb))
    determinant = ww * bb - wb.square()
    by_w = -(bb * gradient[:, 0] - wb * gradient[:, 1]) / determinant
    by_b = -(ww * gradient[:, 1] - wb * gradient[:, 0]) / determinant
    step = torch.stack([by_w, by_b], 1)
    return step, -(step * gradient).sum(1) / 2


class Best(NamedTuple):
    """For every task the latent of least loss, and its regression."""

    latent: Int64[np.ndarray, " tasks"]
    w: Float64[np.ndarray, " tasks"]
    b: Float64[np.ndarray, " tasks"]
    loss: Float64[np.ndarray, " tasks"]


def class_weights(
    y: Bool[np.ndarray, "rows tasks"],
) -> tuple[Float64[np.ndarray, " tasks"], Float64[np.ndarray, " tasks"]]:
    """Return the weight of a true and of a false row of every task: half over their number.

    Raises:
        ValueError: a task has one class only.
    """
    true = y.sum(0)
    if not np.all((true > 0) & (true < len(y))):
        raise ValueError("a task needs rows of both classes")
    return 0.5 / true, 0.5 / (len(y) - true)


def binned_means(
    z: csc_array, y: Bool[np.ndarray, "rows tasks"], bins: int
) -> tuple[
    Float64[np.ndarray, "2 latents tasks {bins}+1"], Float64[np.ndarray, "2 latents tasks {bins}+1"]
]:
    """Return mean and number of the rows of each class in each bin; class 1 is y.

    Active rows of a latent are in bins of equal width between its least and greatest activation,
    all others in the last bin, at zero.
    """
    latents, tasks = z.shape[1], y.shape[1]
    sizes = np.diff(z.indptr)
    column = np.repeat(np.arange(latents), sizes)
    some = np.flatnonzero(sizes)
    low, width = np.zeros(latents), np.ones(latents)
    if len(some):
        low[some] = np.minimum.reduceat(z.data, z.indptr[some])
        width[some] = np.maximum.reduceat(z.data, z.indptr[some]) - low[some]
    width[width == 0] = 1
    values = z.data.astype(np.float64)
    bin_ = np.minimum(((values - low[column]) / width[column] * bins).astype(np.int64), bins - 1)
    cell = column * bins + bin_
    labels = y.astype(np.float64)

    def sums(weights: np.ndarray) -> Float64[np.ndarray, "2 latents tasks bins"]:
        """Sum weights of the entries of every cell over the rows of each class."""
        shape = (latents * bins, len(y))
        order = csr_array((weights, (cell, z.indices)), shape=shape)
        true = (order @ labels).reshape(latents, bins, tasks)
        both = np.bincount(cell, weights, latents * bins).reshape(latents, bins, 1)
        return np.stack([both - true, true]).transpose(0, 1, 3, 2)

    counts = np.rint(sums(np.ones_like(values)))
    total = np.stack([len(y) - y.sum(0), y.sum(0)])[:, None, :, None]
    inactive = total - counts.sum(3, keepdims=True)
    means = np.divide(sums(values), counts, out=np.zeros_like(counts), where=counts > 0)
    return (
        np.concatenate([means, np.zeros_like(inactive)], 3),
        np.concatenate([counts, inactive], 3),
    )


def lower_bounds(
    z: csc_array, y: Bool[np.ndarray, "rows tasks"], bins: int
) -> Float64[np.ndarray, "latents tasks"]:
    """Return what the least loss of every latent and task is not below, but for TOLERANCE."""
    true, false = class_weights(y)
    found = np.empty((z.shape[1], y.shape[1]))
    size = max(1, BLOCK // (2 * y.shape[1] * (bins + 1)))
    for start in range(0, z.shape[1], size):
        means, counts = binned_means(z[:, start : start + size], y, bins)
        counts *= np.stack([false, true])[:, None, :, None]
        sign = np.broadcast_to(np.array([-1.0, 1.0])[:, None, None, None], means.shape)
        points = (
            torch.from_numpy(np.concatenate(part, axis=2).reshape(-1, 2 * (bins + 1)))
            for part in (means, sign, counts)
        )
        found[start : start + size] = fit(Points(*points)).loss.view(-1, y.shape[1])
    return found


def tokens_of(
    z: csc_array,
    y: Bool[np.ndarray, "rows tasks"],
    latents: Int64[np.ndarray, " fits"],
    tasks: Int64[np.ndarray, " fits"],
) -> Points:
    """Return the rows of y as points, of one latent and one task each; inactive ones as two."""
    true, false = class_weights(y)
    starts, ends = z.indptr[latents], z.indptr[latents + 1]
    width = int((ends - starts).max(initial=0))
    points = np.zeros((3, len(latents), width + 2))
    points[1] = 1
    for place, (start, end, task) in enumerate(zip(starts, ends, tasks, strict=True)):
        labels = y[z.indices[start:end], task]
        points[0, place, : end - start] = z.data[start:end]
        points[1, place, : end - start] = np.where(labels, 1, -1)
        points[2, place, : end - start] = np.where(labels, true[task], false[task])
        inactive = true[task] * labels.sum(), false[task] * (~labels).sum()
        points[2, place, -2:] = np.maximum(0.5 - np.array(inactive), 0)
    points[1, :, -1] = -1
    return Points(*torch.from_numpy(points))


def best_latents(z: csc_array, y: Bool[np.ndarray, "rows tasks"], bins: int = BINS) -> Best:
    """Return the latent and regression of least cross-entropy for every task.

    Args:
        z: activations, "rows latents".
        y: labels; every task has rows of both classes.
        bins: per latent; more of them cost more, and save fits. The result is the same.
    """
    bounds = lower_bounds(z, y, bins)
    tasks = np.arange(y.shape[1])
    w, b = np.zeros(len(tasks)), np.zeros(len(tasks))
    best = Best(np.zeros(len(tasks), np.int64), w, b, np.full(len(tasks), np.inf))
    while True:
        candidate = bounds.argmin(0)
        open_ = np.flatnonzero(bounds[candidate, tasks] < best.loss - TOLERANCE)
        if not len(open_):
            return best
        fits = fit(tokens_of(z, y, candidate[open_], open_))
        bounds[candidate[open_], open_] = np.inf
        better = fits.loss.numpy() < best.loss[open_]
        at = open_[better]
        for kept, new in zip(best, (candidate[open_], *fits), strict=True):
            kept[at] = np.asarray(new)[better]


def cross_entropy(
    z: Float64[np.ndarray, "rows tasks"],
    y: Bool[np.ndarray, "rows tasks"],
    best: Best,
    fitted_rows: int,
) -> Float64[np.ndarray, " tasks"]:
    """Return the cross-entropy of regressions on other rows than those they were fitted to.

    Args:
        z: activations of the latent of every task.
        y: labels.
        best: the regressions.
        fitted_rows: rows that they were fitted to. No prediction is surer than 1/(rows + 2), the
            rule of succession, since separable classes are fitted with infinite certainty.
    """
    true, false = class_weights(y)
    p = 1 / (1 + np.exp(-np.clip(best.w * z + best.b, -50, 50)))
    p = np.clip(p, 1 / (fitted_rows + 2), 1 - 1 / (fitted_rows + 2))
    return -(true * np.where(y, np.log(p), 0) + false * np.where(y, 0, np.log(1 - p))).sum(0)
