"""Which features of a dictionary a text activates, and how well they reconstruct it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shared.errors import UserError
from shared.features import known
from shared.features.dictionary import Dictionary
from shared.features.logits import Promoted, promoted
from shared.metrics.downstream import Downstream
from shared.metrics.reconstruction import Reconstruction


class Active(NamedTuple):
    """A feature at a token, and its activation there."""

    feature: int
    strength: float


class ReadToken(NamedTuple):
    """A token of a text; position 0 is the END_OF_TEXT before it, and is not read."""

    position: int
    id: int
    text: str
    active: tuple[Active, ...]
    """The strongest features, the strongest first; fewer than asked for where fewer are active."""


class About(NamedTuple):
    """A feature that is among the strongest at some token.

    strength, position: where it is strongest in the text.
    density: the share of tokens on which it is active, in general; None where it is not known.
    label: None where it has none.
    promoted: the tokens whose logits it raises most, see `shared.features.logits.logit_weights`.
    """

    feature: int
    strength: float
    position: int
    density: float | None
    label: str | None
    promoted: tuple[Promoted, ...]


class Quality(NamedTuple):
    """How well all features together reconstruct the activations of a text, from position 1 on.

    l0: active features per token.
    fvu: fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean of this text; nan for
        a single token.
    loss, spliced: cross-entropy in nats per token of the text, as the model is and with the
        reconstruction in place of the activations.
    recovered_zero, recovered_mean: CE recovered, (L_abl − L_SAE) / (L_abl − L), against activations
        of zero and against x̄; nan where that ablation costs nothing.
    """

    l0: float
    fvu: float
    loss: float
    spliced: float
    recovered_zero: float
    recovered_mean: float


@dataclass(frozen=True)
class Reading:
    """What features say about a text."""

    sae: str
    model: str
    site: str
    tokens: tuple[ReadToken, ...]
    features: tuple[About, ...]
    """All that `tokens` name, the strongest first."""
    quality: Quality


@torch.no_grad()
def read(dictionary: Dictionary, text: str, top: int = 5, logits: int = 5) -> Reading:
    """Read a text by the features of a dictionary.

    Args:
        dictionary: whose features.
        text: what the model reads after END_OF_TEXT.
        top: features per token, at most.
        logits: promoted tokens per feature.

    Raises:
        UserError: the text is empty or too long, or `top` or `logits` is below 1.
    """
    if top < 1 or logits < 1:
        raise UserError(f"{top} features and {logits} tokens: give 1 or more of each")
    tokens = dictionary.tokens(text)
    x = dictionary.activations(tokens)[0, 1:]
    f = dictionary.encode(x)
    active = _strongest(f, top)
    return Reading(
        dictionary.name,
        dictionary.model.name,
        str(dictionary.site),
        _tokens(dictionary, tokens[0, 1:], active),
        _about(dictionary, f, {feature for row in active for feature, _ in row}, logits),
        _quality(dictionary, tokens, x, f),
    )


def _strongest(f: Float[Tensor, "length d_sae"], top: int) -> list[tuple[Active, ...]]:
    """Return the active ones of the `top` strongest features at each token."""
    values, indices = f.topk(min(top, f.shape[1]))
    return [
        tuple(Active(i, z) for i, z in zip(*row, strict=True) if z > 0)
        for row in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _tokens(
    dictionary: Dictionary, ids: Int64[Tensor, " length"], active: list[tuple[Active, ...]]
) -> tuple[ReadToken, ...]:
    texts = dictionary.shown(ids)
    return tuple(map(ReadToken, range(1, len(ids) + 1), ids.tolist(), texts, active))


def _about(
    dictionary: Dictionary, f: Float[Tensor, "length d_sae"], features: set[int], logits: int
) -> tuple[About, ...]:
    """Describe some features, the strongest in the text first."""
    peaks, at = f.max(0)
    order = sorted(features, key=lambda feature: (-peaks[feature].item(), feature))
    density, labels = known.density(dictionary), known.labels(dictionary)
    tokens = promoted(dictionary, dictionary.directions[order], logits)
    return tuple(
        About(
            feature,
            peaks[feature].item(),
            int(at[feature]) + 1,
            None if density is None else density[feature].item(),
            labels.get(feature),
            raised,
        )
        for feature, raised in zip(order, tokens, strict=True)
    )


def _quality(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 whole"],
    x: Float[Tensor, "length d_in"],
    f: Float[Tensor, "length d_sae"],
) -> Quality:
    x_hat = dictionary.decode(f, x)
    reconstruction = Reconstruction()
    reconstruction.update(x, x_hat)
    downstream = Downstream(dictionary.model, dictionary.site, x.mean(0))
    downstream.update(tokens, [x_hat[None]])
    effect = downstream.result()
    return Quality(
        l0=(f > 0).sum(1, dtype=torch.float32).mean().item(),
        fvu=reconstruction.result().fvu,
        loss=float(effect.loss),
        spliced=effect.spliced.item(),
        recovered_zero=effect.recovered_zero.item(),
        recovered_mean=effect.recovered_mean.item(),
    )
