"""Synthetic sparse features: batches of inputs with the probability that each row stands for.

Every input distribution of the paper is a mixture over supports (which features are active). Rows
that matter are drawn, the others are weighted: supports are enumerated where there are few, and
the all-zero input, which dominates at high sparsity, is always one row with its exact probability.
Both are the paper's expected loss (section "Mathematical Understanding", L = sum_k (1-S)^k S^(n-k)
L_k), estimated with less noise than plain sampling. Random numbers are shared by all groups.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

IGNORABLE = 1e-3
"""Share of empty inputs below which drawing them costs nothing worth saving."""


class Batch(NamedTuple):
    """Inputs of every group of models, and what share of the distribution each column stands for.

    Models of one group see the same inputs. The batch is the last dimension.
    """

    x: Float[Tensor, "groups n batch"]
    weight: Float[Tensor, "groups batch"]


@runtime_checkable
class Inputs(Protocol):
    """A distribution of inputs for each group of models."""

    @property
    def groups(self) -> int:
        """How many groups there are."""
        ...

    def sample(self, generator: torch.Generator) -> Batch:
        """Draw a batch on the generator's device."""
        ...


@dataclass(frozen=True)
class SparseUniform:
    """Independent features: x_i ~ U[0,1) (or U[-1,1) if `signed`) with probability p, else 0.

    `density` holds p = 1 - S of each group. Where empty inputs are common, one column is the zero
    input with its exact weight (1-p)^n, and the other `batch` - 1 are drawn given that at least
    one feature is active, so that no work is spent on drawing nothing.
    """

    density: Float[Tensor, " groups"]
    n: int
    batch: int
    signed: bool = False

    @property
    def groups(self) -> int:
        """How many densities there are."""
        return len(self.density)

    def sample(self, generator: torch.Generator) -> Batch:
        """Draw a batch. Raises ValueError unless 0 < density <= 1."""
        if not bool(((self.density > 0) & (self.density <= 1)).all()):
            raise ValueError(f"densities must be in (0, 1], got {self.density.tolist()}")
        device = generator.device
        density = self.density.to(device).double()
        empty = (1 - density) ** self.n
        rows = self.batch if bool((empty < IGNORABLE).all()) else self.batch - 1
        noise = torch.rand(self.n, rows, generator=generator, device=device)
        # One random number serves twice: v < p decides, and then 1 - v/p is uniform.
        slope = (-1 / density).float()[:, None, None]
        if rows == self.batch:
            x = (noise * slope).add_(1).relu_()
            weight = torch.full((self.groups, rows), 1 / rows, device=device)
        else:
            x = torch.zeros(self.groups, self.n, self.batch, device=device)
            torch.mul(noise, slope, out=x[:, :, :rows])
            x[:, :, :rows].add_(1).relu_()
            self._force_one_active(x[:, :, :rows], density, empty, noise, generator)
            weight = ((1 - empty) / rows).float()[:, None].repeat(1, self.batch)
            weight[:, -1] = empty.float()
        if self.signed:
            sign = torch.rand(x.shape[1:], generator=generator, device=device).sub_(0.5).sign_()
            x.mul_(sign)
        return Batch(x, weight)

    def _force_one_active(
        self,
        x: Float[Tensor, "groups n rows"],
        density: Float[Tensor, " groups"],
        empty: Float[Tensor, " groups"],
        noise: Float[Tensor, "n rows"],
        generator: torch.Generator,
    ) -> None:
        """Condition on a non-empty support: draw the first active feature, clear those before."""
        device = generator.device
        quantile = torch.rand(x.shape[2], generator=generator, device=device).double()
        # The first active feature is geometric, truncated to n; those after it are independent.
        log_off = torch.log1p(-density.clamp(max=1 - 1e-12))[:, None]
        first = torch.log1p(-quantile * (1 - empty)[:, None]).div_(log_off).floor_()
        first = first.clamp_(0, self.n - 1).long()[:, None]
        index = torch.arange(self.n, device=device)[:, None]
        x.mul_(index > first)
        x.scatter_(1, first, noise.expand(len(x), -1, -1).gather(1, first))


@dataclass(frozen=True)
class Supports:
    """Enumerated supports: active features are U[0,1) (or U[-1,1)), the others 0.

    Each support gets `per_support` columns, stratified in every feature (a Latin hypercube), with
    the weight `probability` / `per_support`.
    """

    supports: Bool[Tensor, "supports n"]
    probability: Float[Tensor, "groups supports"]
    per_support: int
    signed: bool = False

    @property
    def groups(self) -> int:
        """How many distributions over the supports there are."""
        return len(self.probability)

    def sample(self, generator: torch.Generator) -> Batch:
        """Draw values for every support."""
        device = generator.device
        count, n = self.supports.shape
        shape = (n, count, self.per_support)
        stratum = torch.rand(shape, generator=generator, device=device).argsort(-1)
        jitter = torch.rand(shape, generator=generator, device=device)
        value = (stratum + jitter) / self.per_support
        if self.signed:
            value = 2 * value - 1
        x = (value * self.supports.T.to(device)[:, :, None]).reshape(1, n, -1)
        weight = (self.probability.to(device) / self.per_support).repeat_interleave(
            self.per_support, dim=1
        )
        return Batch(x.expand(self.groups, -1, -1), weight.float())


def independent_supports(
    density: Float[Tensor, "groups n"],
) -> tuple[Bool[Tensor, "supports n"], Float[Tensor, "groups supports"]]:
    """All 2^n supports of independent features, with their probabilities (rows sum to 1)."""
    n = density.shape[1]
    supports = torch.tensor(list(itertools.product([False, True], repeat=n)))
    on, off = density[:, None, :], 1 - density[:, None, :]
    return supports, torch.where(supports, on, off).prod(-1)
