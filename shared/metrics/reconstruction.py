"""How well vectors x are reconstructed as x̂."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    """Measures of a reconstruction, over all vectors and elements; E is the mean over vectors.

    mse: E‖x − x̂‖² / d, the mean over elements.
    fvu: fraction of variance unexplained, E‖x − x̂‖² / E‖x − x̄‖², x̄ the mean of these vectors:
        predicting the mean gives 1. Scaling and Evaluating Sparse Autoencoders calls it normalised
        MSE. Not the mean of the vectors' own ratios, nor the share of E‖x‖², which a code that
        reproduces the mean alone can make small.
    gamma: relative reconstruction bias, E‖x̂‖² / E[x·x̂]: x̂ / γ has the least squared error of all
        rescalings, so below 1 means shrinkage (Improving Dictionary Learning with Gated Sparse
        Autoencoders). NaN where E[x·x̂] is 0.
    cosine: E cos(x, x̂); a zero vector counts 0.
    """

    mse: float
    fvu: float
    gamma: float
    cosine: float

    @property
    def explained_variance(self) -> float:
        """1 − FVU."""
        return 1 - self.fvu


class Reconstruction:
    """Sums what `Fidelity` needs over batches of vectors and their reconstructions."""

    def __init__(self) -> None:
        self._vectors = 0
        self._d = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._error = self._spread = self._power = self._overlap = self._cosine = 0.0

    def update(self, x: Float[Tensor, "batch d"], x_hat: Float[Tensor, "batch d"]) -> None:
        """Count a batch."""
        dots = (x * x_hat).sum(1, dtype=torch.float64)
        powers = x_hat.square().sum(1, dtype=torch.float64)
        lengths = (x.square().sum(1, dtype=torch.float64) * powers).sqrt()
        self._error += float((x - x_hat).square().sum(dtype=torch.float64))
        self._power += float(powers.sum())
        self._overlap += float(dots.sum())
        self._cosine += float((dots / lengths.where(lengths != 0, torch.inf)).sum())
        self._add_spread(x)

    def _add_spread(self, x: Float[Tensor, "batch d"]) -> None:
        """Merge Σ‖x − x̄‖² of a batch with the sum so far, about their common mean.

        Chan, Golub and LeVeque 1979; the difference of two large sums would lose digits.
        """
        mean = x.mean(0, dtype=torch.float64)
        if self._vectors == 0:
            self._d = x.shape[1]
            self._mean = torch.zeros_like(mean)
        total = self._vectors + len(x)
        apart = mean - self._mean
        spread = float((x - mean.to(x.dtype)).square().sum(dtype=torch.float64))
        self._spread += spread + float(apart.square().sum()) * self._vectors * len(x) / total
        self._mean += apart * (len(x) / total)
        self._vectors = total

    def result(self) -> Fidelity:
        """Return the measures of everything so far."""
        return Fidelity(
            mse=self._error / (self._vectors * self._d),
            fvu=self._error / self._spread if self._spread else math.nan,
            gamma=self._power / self._overlap if self._overlap else math.nan,
            cosine=self._cosine / self._vectors,
        )
