"""What parts of the activation at a site do to the logit of a target token.

Attribution and patching ask the same: the activation x of a prompt is taken apart into vectors,
each at one position; some of them are added to what is left, the model goes on from there, and the
score of a target at the last position is read off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from shared.activations.sites import hook
from shared.features.dictionary import Dictionary
from shared.progress import progress

TOKENS = 4096
"""Tokens that run at once, in as many rows as there is room for."""
ROWS = 512
"""Parts whose feature activations, mostly zeros, are written out at once."""


class Target(NamedTuple):
    """A token, and what its logit is measured against: another token's, or the mean of all.

    A logit alone says nothing: a constant added to all of them changes no prediction.
    """

    token: int
    versus: int | None = None

    def score(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """Return logit[token] − logit[versus], or logit[token] − mean(logit); linear in logits."""
        other = logits.mean(-1) if self.versus is None else logits[..., self.versus]
        return logits[..., self.token] - other


def open_target(dictionary: Dictionary, token: str, versus: str | None) -> Target:
    """Return the target that two texts name. Raises UserError for one that is no single token."""
    other = None if versus is None else dictionary.token(versus)
    return Target(dictionary.token(token), other)


class Parts(NamedTuple):
    """Vectors, each to be added to the activation at one position."""

    positions: Int64[Tensor, " parts"]
    vectors: Float[Tensor, "parts d_in"]


def contributions(
    dictionary: Dictionary,
    x: Float[Tensor, "parts d_in"],
    features: Int64[Tensor, " parts"],
    amounts: Float[Tensor, " parts"],
) -> Float[Tensor, "parts d_in"]:
    """Return what single features of given activations add to activations x.

    That is z_i·d_i, d_i being the decoder row, for an autoencoder that normalises its inputs times
    the deviation of x.
    """
    vectors = [torch.empty_like(x[:0])]
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        alone = amounts.new_zeros(len(x[rows]), dictionary.d_sae)
        alone.scatter_(1, features[rows, None], amounts[rows, None])
        vectors.append(dictionary.change(alone, x[rows]))
    return torch.cat(vectors)


@dataclass(frozen=True, eq=False)
class Run:
    """A prompt whose activation at the site becomes x plus parts, each times an amount.

    Called with amounts, it gives the score of the target, differentiable.
    """

    dictionary: Dictionary
    tokens: Int64[Tensor, "1 length"]
    target: Target
    x: Float[Tensor, "length d_in"]
    parts: Parts

    def activations(
        self, amounts: Float[Tensor, "batch parts"]
    ) -> Float[Tensor, "batch length d_in"]:
        """Return x plus the parts, each times its amount, at its position."""
        at = torch.arange(len(self.x), device=self.x.device)[:, None] == self.parts.positions
        return self.x + (amounts[:, None] * at) @ self.parts.vectors

    def __call__(self, amounts: Float[Tensor, "batch parts"]) -> Float[Tensor, " batch"]:
        """Return the target's score at the last position, a row for each of amounts."""
        x = self.activations(amounts)
        model = self.dictionary.model
        handle = hook(model, self.dictionary.site, lambda before: x.to(before.dtype))
        try:
            tokens = self.tokens.expand(len(amounts), -1)
            logits = model.network(tokens, use_cache=False, logits_to_keep=1).logits
        finally:
            handle.remove()
        return self.target.score(logits[:, -1].float())

    @property
    def rows(self) -> int:
        """How many rows of amounts run at once."""
        return max(1, TOKENS // self.tokens.shape[1])

    @torch.no_grad()
    def each(self, chosen: Bool[Tensor, "cases parts"], label: str) -> Float[Tensor, " cases"]:
        """Return the score with some parts added as they are and the others not, for every case.

        Progress is shown under the label.
        """
        found = []
        with progress(label, len(chosen)) as advance:
            for cases in torch.split(chosen, self.rows):
                found.append(self(cases.float()))
                advance(len(cases))
        return torch.cat(found)
