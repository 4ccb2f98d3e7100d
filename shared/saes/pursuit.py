"""Sparse codes of vectors in a fixed dictionary, found without its encoder.

Non-negative gradient pursuit: Blumensath and Davies 2008, "Gradient Pursuits", with activations
kept from falling below zero, as Gated SAE (appendix A) uses it for inference-time optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

COLUMNS = 512
"""Inner products are kept in blocks of so many columns, which are read faster."""
TINY = 1e-30


def gradient_pursuit(
    x: Float[Tensor, "batch d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    l0: int,
) -> Float[Tensor, "batch d_sae"]:
    """Return codes f ≥ 0 with at most `l0` active entries per vector, f W_dec + b_dec near x.

    See `gradient_pursuits`.
    """
    return gradient_pursuits(x, W_dec, b_dec, [l0])[0]


def gradient_pursuits(
    x: Float[Tensor, "batch d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    l0s: Sequence[int],
) -> list[Float[Tensor, "batch d_sae"]]:
    """Return the codes after as many rounds as each of `l0s` says, at the cost of the longest.

    A round lets the feature that correlates best with a vector's residual join its active ones,
    and moves their activations along the gradient of the squared error, as far as lowers it most.
    A vector that no feature correlates with above zero gets no further one. Activations that would
    fall below zero become zero and leave. Where that cut makes the move overshoot, it is shortened,
    so that the error never rises from one round to the next; without a cut this is Blumensath and
    Davies' step. A vector has fewer active features than rounds where one was chosen again, or
    left.

    The inner products of all features with each other are kept, 4 d_sae² bytes.

    Args:
        x: the vectors, float32.
        W_dec: the dictionary, rows of unit length (longer ones would be preferred).
        b_dec: what is subtracted first.
        l0s: numbers of rounds, in any order.

    Raises:
        ValueError: there is no number of rounds, or a negative one.
    """
    if not l0s or min(l0s) < 0:
        raise ValueError(f"rounds of pursuit should be zero or more, not {list(l0s)}")
    batch, rounds = len(x), max(l0s)
    inner = _InnerProducts(W_dec)
    correlation = (x - b_dec) @ W_dec.T  # of every feature with the residual
    features = torch.zeros(batch, rounds, dtype=torch.int64, device=x.device)
    values = torch.zeros(batch, rounds, device=x.device)
    active = torch.zeros(batch, rounds, dtype=torch.bool, device=x.device)
    gram = torch.zeros(batch, rounds, rounds, device=x.device)  # of each vector's own features
    found: dict[int, Tensor] = {}
    for done in range(rounds + 1):
        if done in l0s:
            codes = torch.zeros_like(correlation)
            found[done] = codes.scatter_add_(1, features[:, :done], values[:, :done])
        if done == rounds:
            break
        best, chosen = correlation.max(1)
        again = (active & (features == chosen[:, None])).any(1)
        features[:, done] = chosen
        active[:, done] = (best > 0) & ~again

        now = slice(done + 1)
        gram[:, done, now] = gram[:, now, done] = inner.between(chosen, features[:, now])
        uphill = torch.where(active[:, now], correlation.gather(1, features[:, now]), 0)
        length = uphill.square().sum(1) / _power(gram[:, now, now], uphill)
        target = (values[:, now] + length[:, None] * uphill).clamp_min(0)
        step = target - values[:, now]
        slope = (step * uphill).sum(1)
        step *= (slope / _power(gram[:, now, now], step)).clamp_max(1)[:, None]

        values[:, now] += step
        active &= values > 0
        correlation -= inner.of_sums(features[:, now], step)
    return [found[l0] for l0 in l0s]


def _power(
    gram: Float[Tensor, "batch k k"], weights: Float[Tensor, "batch k"]
) -> Float[Tensor, " batch"]:
    """Return ‖Σ weights_i row_i‖², above zero, so that a step of nothing over it is nothing."""
    return torch.einsum("bij,bi,bj->b", gram, weights, weights).clamp_min(TINY)


class _InnerProducts:
    """The inner products of all rows of a dictionary with each other, in blocks of columns."""

    def __init__(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        self._d_sae = len(W_dec)
        count = -(-self._d_sae // COLUMNS)
        padded = W_dec.new_zeros(count * COLUMNS, W_dec.shape[1])
        padded[: self._d_sae] = W_dec
        self._blocks = W_dec @ padded.view(count, COLUMNS, W_dec.shape[1]).mT  # block, row, column

    def between(
        self, left: Int[Tensor, " batch"], right: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Return the products of one row with each of several."""
        return self._blocks[right // COLUMNS, left[:, None], right % COLUMNS]

    def of_sums(
        self, features: Int[Tensor, "batch k"], weights: Float[Tensor, "batch k"]
    ) -> Float[Tensor, "batch d_sae"]:
        """Return the products of weighted sums of rows with all rows."""
        parts = [
            embedding_bag(features, block, mode="sum", per_sample_weights=weights)
            for block in self._blocks
        ]
        return torch.cat(parts, dim=1)[:, : self._d_sae]
