"""Windows of text around tokens on which a feature or neuron fires more or less.

The paper's interface and its automated interpretability (appendix "Automated Interpretability")
show a unit, that is a feature or a neuron, by windows of nine tokens: the strongest, some from
every interval of its activation, random ones, and its strongest tokens where they stand elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_matrix

REACH = 4
WIDTH = 2 * REACH + 1
"""Tokens of a window: the one it is about and REACH on each side."""

INTERVALS = 12
"""Intervals of equal width between 0 and a unit's maximum from which examples are drawn."""

TOP, INTERVAL, RANDOM, ELSEWHERE = range(4)
"""Why an example was drawn."""

LEVELS = 10
"""A rater reads and writes activations as whole numbers from 0 to 9."""


class Unit(NamedTuple):
    """A feature or neuron on one split: the rows where it fires, ascending, and how strongly."""

    rows: np.ndarray
    values: np.ndarray

    @property
    def maximum(self) -> float:
        """The strongest activation; 0 for a unit that never fires."""
        return float(self.values.max(initial=0))


def unit(matrix: csc_matrix, column: int) -> Unit:
    """Return one column of a split's activations [rows, units]."""
    part = slice(matrix.indptr[column], matrix.indptr[column + 1])
    rows, values = matrix.indices[part].astype(np.int64), matrix.data[part]
    order = np.argsort(rows, kind="stable")
    return Unit(rows[order], values[order])


def activations(of: Unit, rows: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return how strongly a unit fires at given rows, 0 where it does not."""
    if not len(of.rows):
        return np.zeros(rows.shape, dtype=np.float32)
    at = np.minimum(np.searchsorted(of.rows, rows), len(of.rows) - 1)
    return np.where(of.rows[at] == rows, of.values[at], np.float32(0))


def quantise(values: Float[np.ndarray, "*shape"], maximum: float) -> Int[np.ndarray, "*shape"]:
    """Round activations to 0..9, where 9 is `maximum`; all 0 for a unit that never fires."""
    if maximum <= 0:
        return np.zeros(values.shape, dtype=np.int64)
    return np.clip(np.rint(values / maximum * (LEVELS - 1)), 0, LEVELS - 1).astype(np.int64)


def interval_of(
    values: Float[np.ndarray, " firings"], maximum: float, count: int = INTERVALS
) -> Int[np.ndarray, " firings"]:
    """Return the interval, 0 to count - 1, of each activation: equal widths from 0 to maximum."""
    scaled = values / maximum * count if maximum > 0 else np.zeros(values.shape)
    return np.clip(np.floor(scaled), 0, count - 1).astype(np.int64)


def windows(rows: Int[np.ndarray, " examples"]) -> Int[np.ndarray, "examples 9"]:
    """Return the rows of the windows around given rows."""
    return rows[:, None] + np.arange(-REACH, REACH + 1)


@dataclass(frozen=True)
class Text:
    """The tokens of a split, one row each, in contexts of `length`."""

    tokens: np.ndarray
    length: int

    def has_window(self, rows: Int[np.ndarray, " some"]) -> Bool[np.ndarray, " some"]:
        """Whether the window around a row lies within its context, after its first token."""
        position = rows % self.length
        return (position > REACH) & (position < self.length - REACH)

    @cached_property
    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a window, sorted by their token, and where each token's rows begin."""
        rows = np.arange(len(self.tokens))
        rows = rows[self.has_window(rows)]
        order = rows[np.argsort(self.tokens[rows], kind="stable")]
        counts = np.bincount(self.tokens[rows].astype(np.int64))
        return order, np.concatenate([[0], np.cumsum(counts)])

    def occurrences(self, tokens: Int[np.ndarray, " some"]) -> Int[np.ndarray, " rows"]:
        """Return the rows with a window at which one of these tokens stands."""
        order, begin = self._by_token
        known = [int(token) for token in np.unique(tokens) if token < len(begin) - 1]
        parts = [order[begin[token] : begin[token + 1]] for token in known]
        return np.concatenate([np.zeros(0, dtype=order.dtype), *parts])

    def random_rows(self, count: int, random: np.random.Generator) -> Int[np.ndarray, " count"]:
        """Draw rows that have a window, each equally likely."""
        contexts = random.integers(0, len(self.tokens) // self.length, count)
        return contexts * self.length + random.integers(REACH + 1, self.length - REACH, count)


class Counts(NamedTuple):
    """How many examples of each kind a set has; `per_interval` is for each of the 12 intervals."""

    top: int
    per_interval: int
    random: int
    elsewhere: int

    @property
    def total(self) -> int:
        """Examples in a full set."""
        return self.top + INTERVALS * self.per_interval + self.random + self.elsewhere


EXPLAIN = Counts(top=10, per_interval=2, random=5, elsewhere=10)
"""The 49 examples that the paper shows to have a unit explained."""

PREDICT = Counts(top=6, per_interval=2, random=10, elsewhere=20)
"""The 60 examples, 540 tokens, on which the paper has activations predicted."""


class Examples(NamedTuple):
    """Rows of examples and why each was drawn (TOP, INTERVAL, RANDOM or ELSEWHERE)."""

    rows: np.ndarray
    kinds: np.ndarray


def with_windows(text: Text, of: Unit) -> Unit:
    """Return the firings of a unit that have a window."""
    kept = text.has_window(of.rows)
    return Unit(of.rows[kept], of.values[kept])


def strongest(text: Text, of: Unit, count: int) -> Int[np.ndarray, " found"]:
    """Return the rows of a unit's strongest firings, the strongest first, one of each context.

    Neighbouring tokens of one run would otherwise fill the list with shifted copies of one window.
    """
    if not len(of.rows):
        return of.rows
    context = of.rows // text.length
    begin = np.flatnonzero(np.diff(context, prepend=-1))
    peaks = np.maximum.reduceat(of.values, begin)
    ends = np.append(begin[1:], len(context))
    best = np.argsort(-peaks, kind="stable")[:count]
    at = [begin[i] + int(of.values[begin[i] : ends[i]].argmax()) for i in best.tolist()]
    return of.rows[at]


def draw(text: Text, of: Unit, counts: Counts, random: np.random.Generator) -> Examples:
    """Draw a set of examples of a unit that fires; no row comes twice.

    A kind has fewer examples than asked for where the text has no more.
    """
    usable = with_windows(text, of)
    level = interval_of(usable.values, usable.maximum)
    top = strongest(text, usable, counts.top)
    taken = [top]

    def pick(rows: np.ndarray, count: int) -> np.ndarray:
        free = rows[~np.isin(rows, np.concatenate(taken))]
        found = random.choice(free, min(count, len(free)), replace=False)
        taken.append(found)
        return found

    inside = [pick(usable.rows[level == i], counts.per_interval) for i in range(INTERVALS)]
    anywhere = pick(np.unique(text.random_rows(2 * counts.random, random)), counts.random)
    elsewhere = pick(text.occurrences(text.tokens[top].astype(np.int64)), counts.elsewhere)
    parts = {TOP: top, INTERVAL: np.concatenate(inside), RANDOM: anywhere, ELSEWHERE: elsewhere}
    kinds = [np.full(len(rows), kind) for kind, rows in parts.items()]
    return Examples(np.concatenate(list(parts.values())), np.concatenate(kinds))


def live(matrices: tuple[csc_matrix, ...], firings: int) -> Int[np.ndarray, " units"]:
    """Return the units that fire at least `firings` times on every split."""
    enough = [np.diff(matrix.indptr) >= firings for matrix in matrices]
    return np.flatnonzero(np.logical_and.reduce(enough))
