"""Neuron to Graph: a latent explained by n-grams with wildcards, and what they predict of it.

Section 4.3, after Foote et al. 2023; steps and constants are those of the authors' code. From every
example, a text that ends where the latent is active,

1. the shortest suffix is kept on whose last token the latent still has RATIO of its activation;
2. a token of it becomes a wildcard if the latent loses less than SALIENCY of what remains when a
   padding token takes its place;
3. the n-gram holds at the start of a text only, if a padding token in front of it brings the latent
   below RATIO of its activation.

An explanation is the trie of such n-grams, read from the last token backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer

RATIO = 0.5
"""Share of an activation that counts as active still."""
SALIENCY = 0.5
"""Share lost from which on a token matters."""

Measure = Callable[
    [Int64[np.ndarray, "texts length"], Int64[np.ndarray, " texts"]], Float[np.ndarray, " texts"]
]
"""The activations, at the last token of texts of equal length, of one latent for each text."""


class Example(NamedTuple):
    """A text that ends where a latent is active, and how strongly it is."""

    latent: int
    tokens: tuple[int, ...]
    activation: float


class Ngram(NamedTuple):
    """Tokens in reading order, None for any; only at the start of a text, or anywhere."""

    tokens: tuple[int | None, ...]
    at_start: bool
    activation: float
    """Of the latent at the last token of the suffix that the n-gram was made of."""


@dataclass
class Trie:
    """N-grams by their tokens from the last to the first; None is the wildcard."""

    children: dict[int | None, Trie] = field(default_factory=dict)
    activation: float | None = None
    """Where an n-gram ends here."""
    activation_at_start: float | None = None
    """Where one ends here that holds at the start of a text only."""

    @classmethod
    def of(cls, ngrams: Sequence[Ngram]) -> Trie:
        """Return the trie of some n-grams; of two that are the same, the later one counts."""
        trie = cls()
        for ngram in ngrams:
            node = trie
            for token in reversed(ngram.tokens):
                node = node.children.setdefault(token, Trie())
            if ngram.at_start:
                node.activation_at_start = ngram.activation
            else:
                node.activation = ngram.activation
        return trie

    def predict(
        self, tokens: Integer[np.ndarray, "texts length"]
    ) -> Float[np.ndarray, "texts length"]:
        """Return the activation predicted at every token, 0 where no n-gram ends.

        As in the authors' code, a token goes down its own branch where there is one, and down the
        wildcard's only where there is none; the first n-gram that is complete on the way counts,
        so that one which extends another never does.
        """
        found = np.zeros(tokens.shape)

        def descend(node: Trie, text: np.ndarray, end: np.ndarray, depth: int) -> None:
            """Follow the branches of a node from all places whose last `depth` tokens led to it."""
            if node.activation is not None:
                found[text, end] = node.activation
                return
            more = end >= depth
            if node.activation_at_start is not None:
                found[text[~more], end[~more]] = node.activation_at_start
            text, end = text[more], end[more]
            before = tokens[text, end - depth]
            for token, child in node.children.items():
                if token is not None:
                    same = before == token
                    descend(child, text[same], end[same], depth + 1)
            if None in node.children:
                rest = ~np.isin(before, [token for token in node.children if token is not None])
                descend(node.children[None], text[rest], end[rest], depth + 1)

        text, end = np.indices(tokens.shape).reshape(2, -1)
        descend(self, text, end, 0)
        return found


class _Suffix(NamedTuple):
    latent: int
    tokens: tuple[int, ...]
    activation: float
    original: float
    """The activation at the end of the whole text."""


def _measured(queries: Sequence[tuple[int, tuple[int, ...]]], measure: Measure) -> list[float]:
    """Return the activation of each (latent, text): once if it recurs, equal lengths together."""
    by_length: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for query in dict.fromkeys(queries):
        by_length.setdefault(len(query[1]), []).append(query)
    known: dict[tuple[int, tuple[int, ...]], float] = {}
    for same in by_length.values():
        latents = np.array([latent for latent, _ in same], dtype=np.int64)
        texts = np.array([text for _, text in same], dtype=np.int64)
        known.update(zip(same, measure(texts, latents).tolist(), strict=True))
    return [known[query] for query in queries]


def _shortest_suffixes(
    examples: Sequence[Example], measure: Measure, longest: int
) -> list[_Suffix | None]:
    found: list[_Suffix | None] = [None] * len(examples)
    for length in range(1, longest + 1):
        left = [
            at
            for at, example in enumerate(examples)
            if found[at] is None and len(example.tokens) >= length
        ]
        queries = [(examples[at].latent, examples[at].tokens[-length:]) for at in left]
        values = _measured(queries, measure)
        for at, (latent, text), value in zip(left, queries, values, strict=True):
            if value >= RATIO * examples[at].activation:
                found[at] = _Suffix(latent, text, value, examples[at].activation)
    return found


def ngrams(
    examples: Sequence[Example], measure: Measure, pad: int, longest: int
) -> list[Ngram | None]:
    """Return the n-gram of every example; None where no suffix of up to `longest` tokens suffices.

    Args:
        examples: of one latent or of many, whose activations are above 0.
        measure: what runs the language model and the autoencoder.
        pad: the token that stands for nothing in particular.
        longest: tokens of the longest suffix that is tried.
    """
    suffixes = _shortest_suffixes(examples, measure, longest)
    found = [suffix for suffix in suffixes if suffix is not None]
    moved = _measured([(one.latent, (pad, *one.tokens)) for one in found], measure)
    without = [
        (one.latent, (*one.tokens[:at], pad, *one.tokens[at + 1 :]))
        for one in found
        for at in range(len(one.tokens))
    ]
    left = iter(_measured(without, measure))

    def ngram(suffix: _Suffix, moved: float) -> Ngram:
        saliency = [1 - next(left) / suffix.activation for _ in suffix.tokens]
        kept = (
            token if lost >= SALIENCY else None
            for token, lost in zip(suffix.tokens, saliency, strict=True)
        )
        return Ngram(tuple(kept), moved < RATIO * suffix.original, suffix.activation)

    made = iter([ngram(*pair) for pair in zip(found, moved, strict=True)])
    return [None if suffix is None else next(made) for suffix in suffixes]
