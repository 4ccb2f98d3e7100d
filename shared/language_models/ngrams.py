"""Unigram, bigram and trigram models: what a language model has to beat.

All three are one model, the interpolated Kneser–Ney model of its order (Kneser and Ney 1995; Chen
and Goodman 1999, section 2.7), so that each backs off to the next lower one:

    p(w | c) = max(n(c, w) − D, 0) / n(c) + D · r(c) / n(c) · p(w | c without its first token)

n(c, w) counts how often w follows c, at the highest order; below it, how many different tokens
precede (c, w). n(c) sums it over w, r(c) is the number of different w. At the first order
c is empty, and what is backed off to is uniform over the vocabulary.

They predict the same tokens as a language model does: positions 1 … length − 1 of every context,
each from what precedes it in its own context. Position 0, always END_OF_TEXT, is not predicted; a
trigram at position 1, where only one token precedes, sees that END_OF_TEXT twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt16

from shared.errors import UserError

MAX_ORDER = 3


@dataclass(frozen=True)
class Level:
    """The counts of one order, as sorted keys.

    A key is an n-gram read as a number in base `vocabulary`, the last token its last digit; the key
    of a context is that of the n-gram without its last digit.
    """

    keys: Int64[np.ndarray, " ngrams"]
    counts: Int64[np.ndarray, " ngrams"]
    contexts: Int64[np.ndarray, " contexts"]
    totals: Int64[np.ndarray, " contexts"]
    distinct: Int64[np.ndarray, " contexts"]
    discount: float

    def probability(
        self,
        keys: Int64[np.ndarray, "*shape"],
        vocabulary: int,
        lower: Float[np.ndarray, "*shape"],
    ) -> Float64[np.ndarray, "*shape"]:
        """Return p(w | c) of n-grams, given that of the next lower order."""
        seen, context = _find(self.contexts, keys // vocabulary)
        total = np.where(seen, self.totals[context], 1)
        known, ngram = _find(self.keys, keys)
        count = np.where(known, self.counts[ngram], 0)
        left = np.where(seen, self.discount * self.distinct[context] / total, 1.0)
        return np.maximum(count - self.discount, 0) / total + left * lower


def _find(
    table: Int64[np.ndarray, " entries"], keys: Int64[np.ndarray, "*shape"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each key is in a sorted table, and where."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return table[at] == keys, at


def _level(
    keys: Int64[np.ndarray, " ngrams"],
    counts: Int64[np.ndarray, " ngrams"],
    vocabulary: int,
    discount: float | None,
) -> Level:
    """Sum counts by context; without a discount, estimate n1 / (n1 + 2 n2) (Ney et al. 1994).

    n1 and n2 are the numbers of n-grams that were counted once and twice.
    """
    if discount is None:
        # At least one, so that a token never seen keeps some probability.
        once, twice = max(int((counts == 1).sum()), 1), int((counts == 2).sum())
        discount = once / (once + 2 * twice)
    contexts = keys // vocabulary
    starts = np.flatnonzero(np.diff(contexts, prepend=-1))
    return Level(
        keys=keys,
        counts=counts,
        contexts=contexts[starts],
        totals=np.add.reduceat(counts, starts),
        distinct=np.diff(starts, append=len(keys)).astype(np.int64),
        discount=float(discount),
    )


def _count(keys: Int64[np.ndarray, " ngrams"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys, sorted, and how often each occurs. Sorts `keys` in place."""
    keys.sort()
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.diff(starts, append=len(keys)).astype(np.int64)


@dataclass(frozen=True)
class NGram:
    """A fitted model: its levels from the first order to its own."""

    vocabulary: int
    levels: tuple[Level, ...]

    def losses(
        self, tokens: UInt16[np.ndarray, "contexts length"]
    ) -> Float64[np.ndarray, "contexts length-1"]:
        """Return −ln p, in nats, of every token but the first of each context."""
        probability = np.full((len(tokens), tokens.shape[1] - 1), 1 / self.vocabulary)
        for order, level in enumerate(self.levels, start=1):
            keys = _keys(tokens, order, self.vocabulary)
            probability = level.probability(keys, self.vocabulary, probability)
        return -np.log(probability)


def _keys(
    tokens: UInt16[np.ndarray, "contexts length"], order: int, vocabulary: int
) -> Int64[np.ndarray, "contexts length-1"]:
    """Return the key of the n-gram that ends at each position but the first."""
    padded = np.concatenate([tokens[:, :1]] * max(order - 2, 0) + [tokens], axis=1)
    length = tokens.shape[1] - 1
    keys = np.zeros((len(tokens), length), dtype=np.int64)
    first = padded.shape[1] - length - order + 1
    for offset in range(first, first + order):
        keys *= vocabulary
        keys += padded[:, offset : offset + length]
    return keys


def fit(
    tokens: UInt16[np.ndarray, "contexts length"],
    order: int,
    vocabulary: int,
    discounts: Sequence[float] | None = None,
) -> NGram:
    """Count the n-grams of some contexts; 20 million tokens take seconds and below 1 GB.

    Args:
        tokens: contexts, each beginning with END_OF_TEXT.
        order: 1 (unigram), 2 (bigram) or 3 (trigram).
        vocabulary: number of tokens.
        discounts: D of each order from the first; by default estimated from the counts.

    Raises:
        UserError: `order` is not 1, 2 or 3, or a token is outside of the vocabulary.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"order is {order}: n-gram models have order 1 to {MAX_ORDER}")
    if tokens.size and int(tokens.max()) >= vocabulary:
        raise UserError(f"vocabulary is {vocabulary}, but a token is {tokens.max()}: raise it")
    keys, counts = _count(_keys(tokens, order, vocabulary).ravel())
    levels = []
    for size in range(order, 0, -1):
        if size < order:  # Below the highest order, count the different tokens that precede.
            keys, counts = _count(keys % vocabulary**size)
        discount = None if discounts is None else discounts[size - 1]
        levels.append(_level(keys, counts, vocabulary, discount))
    return NGram(vocabulary, tuple(reversed(levels)))
