"""Sums and differences of feature directions: which features and tokens they are near.

The direction of Σ c_i I_i is v = Σ c_i d_i / |d_i|, d_i the decoder rows. Rows of length 1 let the
coefficients alone weigh the terms, as for word vectors (Mikolov, Yih and Zweig 2013). The terms
themselves are nearly always nearest to v, which made many analogies of word vectors look better
than they are (Linzen 2016): here they are listed apart, and so is what chance would give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shared.errors import UserError
from shared.features.dictionary import Dictionary
from shared.features.edits import Edit
from shared.features.known import labels
from shared.features.logits import Promoted, promoted

TERM = re.compile(r"\s*([+-])\s*(?:(\d+(?:\.\d*)?)\s*\*\s*)?(\d+)\s*")
CANCELLED = 1e-6
"""Length below which a sum of unit vectors is rounding alone."""


class Near(NamedTuple):
    """A feature, and the cosine of its decoder row with the direction."""

    feature: int
    cosine: float
    label: str | None
    promoted: tuple[Promoted, ...]


@dataclass(frozen=True)
class Combination:
    """What a combined direction v is near.

    coefficients: of the features in it.
    length: |v|; √(Σ c_i²) if the terms were orthogonal.
    chance: the cosine that the nearest of as many random directions has with v, its median.
    terms: the features in it.
    nearest: the nearest other features, nearest first.
    promoted, suppressed: the tokens whose logits v / |v| raises and lowers most along the direct
        path; see `shared.features.logits.logit_weights`.
    """

    coefficients: Mapping[int, float]
    length: float
    chance: float
    terms: tuple[Near, ...]
    nearest: tuple[Near, ...]
    promoted: tuple[Promoted, ...]
    suppressed: tuple[Promoted, ...]


def parse(expression: str) -> dict[int, float]:
    """Return the coefficient of each feature of "12 - 7 + 0.5*40"; equal features are summed.

    Raises UserError for anything else.
    """
    signed = expression if expression.lstrip().startswith(("+", "-")) else f"+{expression}"
    coefficients: dict[int, float] = {}
    at = 0
    while at < len(signed):
        term = TERM.match(signed, at)
        if term is None:
            raise UserError(
                f"{expression!r} is no sum of features: write for instance '12 - 7 + 0.5*40'"
            )
        sign, factor, feature = term.groups()
        amount = float(f"{sign}{factor or 1}")
        coefficients[int(feature)] = coefficients.get(int(feature), 0) + amount
        at = term.end()
    return coefficients


def amounts(dictionary: Dictionary, coefficients: Mapping[int, float]) -> dict[int, float]:
    """Return c_i / |d_i| of each feature: what v takes of its decoder row.

    Raises UserError for a feature that is not there, or whose decoder row is zero.
    """
    lengths = {i: dictionary.directions[dictionary.feature(i)].norm().item() for i in coefficients}
    for feature, length in lengths.items():
        if length == 0:
            raise UserError(f"feature {feature} of {dictionary.name} has no direction")
    return {feature: amount / lengths[feature] for feature, amount in coefficients.items()}


def direction(dictionary: Dictionary, coefficients: Mapping[int, float]) -> Float[Tensor, " d_in"]:
    """Return v = Σ c_i d_i / |d_i|. Raises UserError as `amounts` does, and where v is zero."""
    taken = amounts(dictionary, coefficients)
    rows = dictionary.directions[list(taken)]
    v = rows.new_tensor(list(taken.values())) @ rows
    if v.norm() < CANCELLED:
        raise UserError("these directions cancel: give a sum that is not zero")
    return v


def chance(d_in: int, number: int) -> float:
    """Return the median of the largest cosine of `number` random directions with a fixed one.

    (1 + cos) / 2 of a uniformly random direction in d_in dimensions has the distribution
    Beta((d_in − 1) / 2, (d_in − 1) / 2).
    """
    from scipy.stats import beta

    shape = (d_in - 1) / 2
    return float(2 * beta.ppf(0.5 ** (1 / number), shape, shape) - 1)


@torch.no_grad()
def combine(
    dictionary: Dictionary, coefficients: Mapping[int, float], top: int = 10, logits: int = 5
) -> Combination:
    """Return the features and tokens that a combined direction is near.

    Args:
        dictionary: whose features they are.
        coefficients: of each feature, as `parse` reads them.
        top: nearest features, at most.
        logits: promoted tokens of the direction and of each feature.

    Raises:
        UserError: there is no such feature, or the directions cancel; `top` or `logits` is below 1.
    """
    if top < 1 or logits < 1:
        raise UserError(f"{top} features and {logits} tokens: give 1 or more of each")
    v = direction(dictionary, coefficients)
    cosines = torch.nn.functional.cosine_similarity(dictionary.directions, v, dim=1)
    terms = list(coefficients)
    others = cosines.clone()
    others[terms] = -torch.inf
    nearest = others.topk(min(top, dictionary.d_sae - len(terms))).indices.tolist()
    unit = v / v.norm()
    raised, lowered = promoted(dictionary, torch.stack([unit, -unit]), logits)
    return Combination(
        dict(coefficients),
        v.norm().item(),
        chance(len(v), max(1, dictionary.d_sae - len(terms))),
        _near(dictionary, cosines, terms, logits),
        _near(dictionary, cosines, nearest, logits),
        raised,
        tuple(Promoted(token, -logit) for token, logit in lowered),
    )


def _near(
    dictionary: Dictionary, cosines: Float[Tensor, " d_sae"], features: Sequence[int], logits: int
) -> tuple[Near, ...]:
    tokens = promoted(dictionary, dictionary.directions[list(features)], logits)
    named = labels(dictionary)
    return tuple(
        Near(feature, cosines[feature].item(), named.get(feature), raised)
        for feature, raised in zip(features, tokens, strict=True)
    )


def edits(dictionary: Dictionary, coefficients: Mapping[int, float], strength: float) -> list[Edit]:
    """Return the edits of features that together add strength·v to the activation.

    For an autoencoder that normalises its inputs, v is multiplied by the deviation of the
    activation, as the direction of a feature is in mode "add". Raises UserError as `amounts` does.
    """
    taken = amounts(dictionary, coefficients)
    return [Edit(feature, "add", strength * amount) for feature, amount in taken.items()]


@torch.no_grad()
def natural_strength(
    dictionary: Dictionary, coefficients: Mapping[int, float], prompt: str
) -> float:
    """Return the strength at which what is added is as long as the activations of a prompt.

    It is the mean of |h| / |v| (v times the deviation of h, where inputs are normalised) over
    positions from 1 on. Raises UserError as `direction` does.
    """
    direction(dictionary, coefficients)  # raises where nothing would be added
    x = dictionary.activations(dictionary.tokens(prompt))[0, 1:]
    f = x.new_zeros(len(x), dictionary.d_sae)
    for feature, amount in amounts(dictionary, coefficients).items():
        f[:, feature] = amount
    return float((x.norm(dim=-1) / dictionary.change(f, x).norm(dim=-1)).mean())
