"""What the current token and the one before it tell of an activation.

A stand-in for a reader who explains a feature and predicts its activations from the explanation:
the mean activation on text where the same two tokens stood, and the correlation of that prediction
with the activation on other text. It knows nothing but two tokens, so that it measures how far a
feature is one of n-grams, not whether a person would understand it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer
from scipy.sparse import csr_matrix

Predict = Callable[[Integer[np.ndarray, " keys"]], Float[np.ndarray, "keys units"]]

PRIOR = 1.0


def _bigrams(
    tokens: Integer[np.ndarray, "contexts length"], vocabulary: int
) -> Integer[np.ndarray, " positions"]:
    """Return a number for the token before and the token at every position but the first."""
    wide = tokens.astype(np.int64)
    return (wide[:, :-1] * vocabulary + wide[:, 1:]).ravel()


def _by_position(
    values: Float[np.ndarray, "contexts positions units"],
) -> Float[np.ndarray, "rows units"]:
    contexts, positions, units = values.shape
    return values.reshape(contexts * positions, units).astype(np.float64)


def _means_by_key(
    keys: Integer[np.ndarray, " positions"],
    values: Float[np.ndarray, "positions units"],
    otherwise: Predict,
    prior: float,
) -> Predict:
    """Return what predicts the mean value of a key, drawn to what is predicted `otherwise`.

    As if `prior` more positions with that key had been seen, with values as predicted.
    """
    known, place = np.unique(keys, return_inverse=True)
    indicator = csr_matrix((np.ones(len(keys)), (place, np.arange(len(keys)))))
    counts = np.bincount(place)[:, None]
    means = (indicator @ values + prior * otherwise(known)) / (counts + prior)

    def predict(wanted: Integer[np.ndarray, " keys"]) -> Float[np.ndarray, "keys units"]:
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where((known[at] == wanted)[:, None], means[at], otherwise(wanted))

    return predict


def predicted(
    fit_tokens: Integer[np.ndarray, "fit length"],
    fit: Float[np.ndarray, "fit length-1 units"],
    tokens: Integer[np.ndarray, "contexts length"],
    prior: float = PRIOR,
) -> Float[np.ndarray, "contexts length-1 units"]:
    """Predict activations at all positions but the first from the token there and the one before.

    From the mean where both tokens stood, drawn to that where the current one stood, and this to
    the mean of all.

    Args:
        fit_tokens: text that `fit` are the activations on.
        fit: without position 0.
        tokens: the text to predict for.
        prior: positions that each more general mean counts for.
    """
    vocabulary = int(max(fit_tokens.max(), tokens.max())) + 1
    values = _by_position(fit)
    keys = _bigrams(fit_tokens, vocabulary)
    overall = values.mean(0)

    def any_token(wanted: np.ndarray) -> np.ndarray:
        return np.broadcast_to(overall, (len(wanted), len(overall)))

    by_token = _means_by_key(keys % vocabulary, values, any_token, prior)
    by_bigram = _means_by_key(keys, values, lambda wanted: by_token(wanted % vocabulary), prior)
    found = by_bigram(_bigrams(tokens, vocabulary))
    return found.reshape(len(tokens), tokens.shape[1] - 1, fit.shape[-1])


def correlations(
    prediction: Float[np.ndarray, "contexts positions units"],
    actual: Float[np.ndarray, "contexts positions units"],
) -> Float[np.ndarray, " units"]:
    """Return Pearson's correlation over all positions, by unit; 0 where one does not vary."""
    x, y = _by_position(prediction), _by_position(actual)
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.divide((x * y).sum(0), scale, out=np.zeros_like(scale), where=scale > 1e-12)
