"""How many features are active, and how often each is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

ULTRALOW = 1e-6
"""Density below which Towards Monosemanticity calls a feature ultralow (it counts 100M tokens)."""


@dataclass(frozen=True)
class Firings:
    """How often each feature was active, and the sum of its activations, over `vectors` vectors.

    A density below 1 / `vectors` cannot be told from zero, and one of k / `vectors` is known to
    about ±√k / `vectors`: 1e-6, for instance, takes some ten million vectors.
    """

    counts: Int64[np.ndarray, " d_sae"]
    sums: Float64[np.ndarray, " d_sae"]
    vectors: int

    @property
    def l0(self) -> float:
        """L0: the mean number of active features of a vector."""
        return float(self.counts.sum() / self.vectors)

    @property
    def l1_norm(self) -> float:
        """The mean over vectors of Σ_j f_j, what the sparsity penalty multiplies."""
        return float(self.sums.sum() / self.vectors)

    @property
    def density(self) -> Float64[np.ndarray, " d_sae"]:
        """The share of vectors on which each feature is active."""
        return self.counts / self.vectors

    @property
    def dead(self) -> float:
        """The fraction of features that were never active."""
        return float((self.counts == 0).mean())

    def ultralow(self, below: float = ULTRALOW) -> float:
        """Return the fraction of features that were active, but on fewer than `below` of all."""
        return float(((self.counts > 0) & (self.density < below)).mean())


class Sparsity:
    """Counts, for every feature, the vectors on which it is active (above zero), and how much."""

    def __init__(self, d_sae: int) -> None:
        self._counts = torch.zeros(d_sae, dtype=torch.int64)
        self._sums = torch.zeros(d_sae, dtype=torch.float64)
        self._vectors = 0

    def update(self, features: Float[Tensor, "batch d_sae"]) -> None:
        """Count a batch of feature activations."""
        self._counts += (features > 0).sum(0).cpu()
        self._sums += features.sum(0, dtype=torch.float64).cpu()
        self._vectors += len(features)

    def result(self) -> Firings:
        """Return the counts so far."""
        return Firings(self._counts.numpy().copy(), self._sums.numpy().copy(), self._vectors)
