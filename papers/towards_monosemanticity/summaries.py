"""What a feature fires on, in short: its tokens and its labels.

Activations are the sparse matrices of `firings`: a row per token, a column per feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csc_matrix, csr_matrix

from papers.towards_monosemanticity.tokens import pretty
from shared.corpus.documents import LABELS
from shared.metrics.correlation import pearson

Array = np.ndarray

COMMON_LABELS = ("text", "code")
"""Labels that name no context: most of the corpus."""
DOMINANT = 0.5
"""Share of its activation from which a label names a feature."""


def alive(features: csc_matrix, minimum: int) -> Bool[Array, " d_sae"]:
    """Whether each feature fires on at least `minimum` tokens."""
    return np.diff(features.indptr) >= minimum


def column(features: csc_matrix, index: int) -> Float[Array, " rows"]:
    """Return one feature's activation on every token."""
    dense = np.zeros(features.shape[0], dtype=np.float32)
    part = slice(features.indptr[index], features.indptr[index + 1])
    dense[features.indices[part]] = features.data[part]
    return dense


def entry_columns(features: csc_matrix) -> Int[Array, " entries"]:
    """Return the feature of every stored activation, in the order of `features.data`."""
    return np.repeat(np.arange(features.shape[1]), np.diff(features.indptr))


def mass(features: csc_matrix, values: Shaped[Array, " rows"], size: int) -> csr_matrix:
    """Return the activation of every feature summed over the tokens of each value.

    Args:
        features: activations.
        values: an integer below `size` for every row: its token id, or its label.
        size: number of values.

    Returns:
        float64 [d_sae, size].
    """
    places = (entry_columns(features), values[features.indices].astype(np.int64))
    shape = (features.shape[1], size)
    return csr_matrix((features.data.astype(np.float64), places), shape=shape)


def shares(amounts: csr_matrix) -> csr_matrix:
    """Divide every row by its sum; empty rows stay empty."""
    total = np.asarray(amounts.sum(1)).ravel()
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return csr_matrix(amounts.multiply(scale[:, None]))


def labelled(labels: Shaped[Array, " rows"], *names: str) -> Bool[Array, " rows"]:
    """Whether each token's label is one of `names`."""
    return np.isin(labels, [LABELS.index(name) for name in names])


def most_correlated(features: csc_matrix, mask: Bool[Array, " rows"]) -> int:
    """Return the feature whose activation correlates most with being inside the mask."""
    indicator = csc_matrix(mask[:, None].astype(np.float32))
    return int(pearson(features, indicator)[:, 0].argmax())


def shuffled_contexts(features: csc_matrix, length: int, random: np.random.Generator) -> csc_matrix:
    """Return the activations with whole contexts exchanged, every token keeping its position.

    Frequencies, and what depends on the position alone, stay; any other relation to activations
    in the old order is chance.
    """
    order = random.permutation(features.shape[0] // length)
    rows = order[features.indices // length] * length + features.indices % length
    moved = csc_matrix((features.data, rows, features.indptr), shape=features.shape)
    moved.sort_indices()
    return moved


def descriptions(
    tokens: csr_matrix, labels: csr_matrix, words: Sequence[bytes], count: int = 3
) -> Shaped[Array, " d_sae"]:
    """Return a few words for every feature: its label if one dominates, and its top tokens.

    Args:
        tokens: activation by token, `mass` of the token ids.
        labels: activation by label, `mass` of the labels.
        words: the bytes of every token.
        count: how many tokens to name.
    """
    by_label = shares(labels).toarray()
    found = []
    for index in range(tokens.shape[0]):
        row = tokens[[index]]
        best = row.indices[np.argsort(-row.data, kind="stable")[:count]]
        label = LABELS[int(by_label[index].argmax())]
        named = by_label[index].max() >= DOMINANT and label not in COMMON_LABELS
        shown = [pretty(words[token], drawable=True) for token in best]
        found.append(" ".join(([f"{label}:"] if named else []) + shown))
    return np.array(found, dtype=np.str_)
