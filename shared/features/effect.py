"""How far an intervention moves a model's predictions, and how likely a text is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def divergence(
    before: Float[Tensor, "*batch vocab"], after: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Return KL(p ‖ q) = Σ p (log p − log q) in nats, of predictions given as logits.

    Args:
        before: p, the model's prediction.
        after: q, that under the intervention.
    """
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return torch.linalg.vecdot(p.exp(), p - q)


def surprise(
    logits: Float[Tensor, "batch length vocab"], tokens: Int64[Tensor, "batch length"]
) -> Float[Tensor, "batch length-1"]:
    """Return −log p in nats of every token but the first, each from the positions before it."""
    found = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return -found[..., 0]
