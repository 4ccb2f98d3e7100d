"""The point with the least sum of distances to given points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def geometric_median(
    points: Float[Tensor, "points d"], tolerance: float = 1e-7, iterations: int = 1000
) -> Float[Tensor, " d"]:
    """Return argmin_y Σ_i ‖points_i − y‖, by Weiszfeld's iteration in float64.

    Where the estimate falls on a point, as it may among activations that are often all zero, the
    step is that of Vardi and Zhang (2000), which does not get stuck there.

    Args:
        points: at least one.
        tolerance: stop when a step is shorter than this share of the mean distance.
        iterations: stop after this many at the latest.
    """
    exact = points.double()
    median = exact.mean(0)
    for _ in range(iterations):
        distances = torch.linalg.vector_norm(exact - median, dim=1)
        spread = distances.mean()
        apart = distances > 1e-12 * spread
        weights = torch.where(apart, 1 / distances.clamp_min(1e-300), 0)
        if not bool(apart.any()):
            break
        pull = (weights @ exact) / weights.sum() - median
        # Points under the estimate hold it back with unit force each.
        hold = (~apart).sum() / (weights.sum() * torch.linalg.vector_norm(pull)).clamp_min(1e-300)
        step = pull * (1 - hold).clamp_min(0)
        median = median + step
        if torch.linalg.vector_norm(step) <= tolerance * spread:
            break
    return median.to(points.dtype)
