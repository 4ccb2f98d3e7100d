"""What a language model loses when an activation is replaced by its reconstruction.

Losses are cross-entropies in nats, averaged over all predicted tokens: positions 1 … length − 1 of
every context, each from the positions before it. Position 0, always END_OF_TEXT, keeps its own
activation whatever replaces the others, also under ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from shared.activations.sites import Site, logits_from, read, replaced_logits
from shared.language_models.load import LanguageModel


def recovered(loss: float, ablated: float, spliced: np.ndarray) -> np.ndarray:
    """Return the share of the loss that a reconstruction recovers, (L_abl − L_SAE) / (L_abl − L).

    1 for a perfect reconstruction, 0 for one that is no better than the ablation (Towards
    Monosemanticity, "Loss recovered", with zero ablation). NaN where ablation costs nothing.
    """
    cost = ablated - loss
    return (ablated - spliced) / cost if cost > 0 else np.full_like(spliced, np.nan)


@dataclass(frozen=True)
class Effect:
    """Losses of the model as it is (`loss`), under ablation, and with each reconstruction.

    zero, mean: with every vector replaced by zeros, and by the given mean.
    spliced: with the vectors replaced by their reconstructions.
    kl: KL(p ‖ q) in nats per predicted token, p the model's prediction, q that with the
        reconstruction.
    """

    loss: float
    zero: float
    mean: float
    spliced: Float64[np.ndarray, " reconstructions"]
    kl: Float64[np.ndarray, " reconstructions"]

    @property
    def recovered_zero(self) -> Float64[np.ndarray, " reconstructions"]:
        """Loss recovered from zero ablation; an overestimate, since zero is a bad guess."""
        return recovered(self.loss, self.zero, self.spliced)

    @property
    def recovered_mean(self) -> Float64[np.ndarray, " reconstructions"]:
        """Loss recovered from mean ablation."""
        return recovered(self.loss, self.mean, self.spliced)


def _after_first(
    replacement: Float[Tensor, "_ _ d"],
) -> Callable[[Tensor], Tensor]:
    """Return what replaces an activation [batch, length, d] at all positions but the first."""

    def replace(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], replacement.to(x.dtype).expand_as(x[:, 1:])], dim=1)

    return replace


class Downstream:
    """Runs a model as it is, ablated, and with each of several reconstructions; sums the losses.

    Args:
        model: the language model.
        site: where activations are replaced.
        mean: what mean ablation puts there: the mean activation over positions ≥ 1 of some text.
    """

    def __init__(self, model: LanguageModel, site: Site, mean: Float[Tensor, " d"]) -> None:
        self._model = model
        self._site = site
        self._mean = mean
        self._predicted = 0
        self._sums: np.ndarray | None = None

    @torch.inference_mode()
    def update(
        self,
        tokens: Int64[Tensor, "batch length"],
        reconstructions: Sequence[Float[Tensor, "batch length-1 d"]],
    ) -> None:
        """Count a batch of contexts and some reconstructions of their activations at the site.

        Reconstructions leave out position 0; there are as many in every batch.

        Raises:
            UserError: the model does not have the site.
        """
        mean = self._mean.to(tokens.device)[None, None]
        clean = self._model.logits(tokens)[:, :-1]
        clean_lse = clean.logsumexp(-1)
        p = (clean - clean_lse[..., None]).exp_()
        sums = [(_cross_entropy(tokens, clean, clean_lse), 0.0)]
        going_on = self._going_on(tokens)
        for replacement in (torch.zeros_like(mean), mean, *reconstructions):
            logits = going_on(_after_first(replacement))[:, :-1]
            lse = logits.logsumexp(-1)
            # Σ p (log p − log q); differences first, so that no large numbers cancel.
            divergence = torch.linalg.vecdot(p, clean - logits) - (clean_lse - lse)
            sums.append(
                (
                    _cross_entropy(tokens, logits, lse),
                    float(divergence.sum(dtype=torch.float64)),
                )
            )
        found = np.array(sums)
        self._sums = found if self._sums is None else self._sums + found
        self._predicted += tokens[:, 1:].numel()

    def _going_on(
        self, tokens: Int64[Tensor, "batch length"]
    ) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """Return what gives the logits under a replacement; after a layer, only later ones run."""
        model, site = self._model, self._site
        if site.kind != "resid_post":
            return lambda replace: replaced_logits(model, tokens, site, replace)
        x = read(model, tokens, [site])[site]
        return lambda replace: logits_from(model, site.layer, replace(x))

    def result(self) -> Effect:
        """Return the mean losses and divergences so far. Raises ValueError before any update."""
        if self._sums is None:
            raise ValueError("no batch has been counted yet")
        (loss, zero, mean, *spliced), (_, _, _, *kl) = (self._sums / self._predicted).T
        return Effect(loss, zero, mean, np.array(spliced), np.array(kl))


def _cross_entropy(
    tokens: Int64[Tensor, "batch length"],
    logits: Float[Tensor, "batch length-1 vocab"],
    lse: Float[Tensor, "batch length-1"],
) -> float:
    """Return the summed loss, in nats, of all tokens but the first of each context.

    `lse` is the logsumexp of the logits.
    """
    correct = logits.gather(-1, tokens[:, 1:, None])[..., 0]
    return float((lse - correct).sum(dtype=torch.float64))
