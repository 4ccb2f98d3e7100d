"""What features fire on: examples, tokens and kinds of text, from one pass over a text.

No activations are kept but those around the examples. Two examples are the same, and the stronger
one is kept, if their last eight tokens are: the token where the feature fires and seven before it.
The strongest examples come from different contexts. Those of the quantiles are drawn uniformly from
all distinct eight tokens at whose end the feature fires: a hash of the eight is the lot of each,
and the lowest lots win, whatever the order of the text (Broder's min-wise sampling, 1997).

Histograms start with very narrow bars. Whenever an activation is beyond the last, the width of all
bars doubles and neighbours merge, so that counts are exact though the maximum is not known before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, Shaped, UInt16, UInt64
from scipy.sparse import csr_matrix
from torch import Tensor

from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts
from shared.corpus.tokenizer import token_bytes
from shared.errors import UserError
from shared.features import known
from shared.features.dictionary import Dictionary
from shared.features.firing import firing, pieces, word
from shared.features.logits import CHUNK, Promoted, logit_weights
from shared.features.neuronpedia import link

DISTINCT = 8
"""Tokens by which examples are told apart."""
BARS = 64
"""Bars of a histogram, at the most; at least half of them are in use."""
DRAWN = 12
"""Examples drawn for every quantile, of which some are shown."""


@dataclass(frozen=True)
class Panels:
    """How much of a feature is shown. Raises UserError for less than one of anything."""

    top: int = 10
    """Strongest examples."""
    quantiles: int = 5
    per_quantile: int = 3
    before: int = 16
    """Tokens of an example before the strongest, and after it."""
    after: int = 8
    listed: int = 10
    """Tokens and kinds it fires on, tokens it promotes and suppresses, and nearest features."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.top, self.quantiles, self.listed) < 1 or min(self.before, self.after) < 0:
            raise UserError("give 1 or more examples, quantiles and listed tokens")
        if not 1 <= self.per_quantile <= DRAWN:
            raise UserError(f"{self.per_quantile} examples per quantile: give 1 to {DRAWN}")


class Example(NamedTuple):
    """A place where a feature fires, and the text around it.

    context, position: of the token where it fires, END_OF_TEXT being position 0.
    kind: of the text there, one of `shared.corpus.documents.LABELS`.
    at: which of `tokens` it is.
    tokens: as `shared.features.firing.pieces` shows them.
    activations: of the feature on every token.
    """

    context: int
    position: int
    kind: str
    strength: float
    at: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class Quantile(NamedTuple):
    """Some examples out of one part of all, between two activations."""

    low: float
    high: float
    examples: tuple[Example, ...]


class Specificity(NamedTuple):
    """How a feature goes with a token or a kind of text.

    share: of the sum of the feature's activations, that on such tokens.
    precision: of the tokens on which it fires, the share of such.
    recall: of such tokens, the share on which it fires.
    base: of all tokens, the share of such.
    """

    name: str
    share: float
    precision: float
    recall: float
    base: float


class Near(NamedTuple):
    """A feature whose decoder row points to nearly where another's does."""

    feature: int
    cosine: float


@dataclass(frozen=True)
class Portrait:
    """What a text and the weights say of a feature.

    tokens: that were read; firings: those on which the feature is active; both from position 1.
    maximum: the greatest activation, 0 where it never fires.
    width: of a bar of `histogram`, the first starting at 0.
    quantiles: the strongest first.
    """

    feature: int
    label: str | None
    link: str | None
    tokens: int
    firings: int
    maximum: float
    mean: float
    width: float
    histogram: tuple[int, ...]
    words: tuple[Specificity, ...]
    kinds: tuple[Specificity, ...]
    top: tuple[Example, ...]
    quantiles: tuple[Quantile, ...]
    nearest: tuple[Near, ...]
    promoted: tuple[Promoted, ...]
    suppressed: tuple[Promoted, ...]

    @property
    def density(self) -> float:
        """The share of tokens on which the feature is active."""
        return self.firings / self.tokens

    @property
    def kind(self) -> Specificity | None:
        """The kind of text whose share is most above its base; None where it never fires."""
        return max(self.kinds, key=lambda one: one.share - one.base, default=None)


class Entries(NamedTuple):
    """Places where features fire, in columns.

    feature: which of those that are studied; order: the lowest are kept; key: equal for the same
    example; row: context · length + position; around: the feature's activations in the window.
    """

    feature: Int64[np.ndarray, " entries"]
    key: UInt64[np.ndarray, " entries"]
    order: Float64[np.ndarray, " entries"]
    row: Int64[np.ndarray, " entries"]
    value: Float32[np.ndarray, " entries"]
    around: Float32[np.ndarray, "entries window"]

    def take(self, index: Shaped[np.ndarray, " some"]) -> Entries:
        """Return some of the entries."""
        return Entries(*(column[index] for column in self))


def lots(
    tokens: UInt16[np.ndarray, "contexts length"], seed: int
) -> UInt64[np.ndarray, "contexts length"]:
    """Return a random number for each position, the same where the DISTINCT tokens up to it are."""
    odd = np.random.default_rng(seed).integers(2**63, size=DISTINCT, dtype=np.uint64) * 2 + 1
    wide = tokens.astype(np.uint64) + np.uint64(1)  # before a context stand zeros, unlike token 0
    found = np.zeros(tokens.shape, dtype=np.uint64)
    for back, factor in enumerate(odd[: tokens.shape[1]]):
        found[:, back:] += _mixed(wide[:, : tokens.shape[1] - back] * factor)
    return _mixed(found)


def _mixed(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scatter numbers over all of uint64 (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kept(entries: Entries, count: int) -> Int64[np.ndarray, " some"]:
    """Return which entries are the `count` of lowest order of each feature, no key twice.

    They are in this order, the first feature first. Of the same key, and of the same order, the
    earlier row goes first.
    """
    by_key = np.lexsort((entries.row, entries.order, entries.key, entries.feature))
    feature, key = entries.feature[by_key], entries.key[by_key]
    new = np.ones(len(by_key), dtype=bool)
    new[1:] = (feature[1:] != feature[:-1]) | (key[1:] != key[:-1])
    single = by_key[new]
    order = np.lexsort((entries.row[single], entries.order[single], entries.feature[single]))
    single = single[order]
    feature = entries.feature[single]
    rank = np.arange(len(single)) - np.searchsorted(feature, feature)
    return single[rank < count]


class Histograms:
    """Counts of activations by their size, exact without knowing the greatest beforehand."""

    def __init__(self, features: int) -> None:
        self._exponent = np.full(features, -1000)  # narrower than any activation
        self._counts = np.zeros((features, BARS), dtype=np.int64)

    def update(
        self, feature: Int64[np.ndarray, " entries"], value: Float32[np.ndarray, " entries"]
    ) -> None:
        """Count some activations, all above 0."""
        greatest = np.zeros(len(self._counts))
        np.maximum.at(greatest, feature, value)
        needed = np.frexp(greatest / BARS)[1]
        needed = np.where(greatest > 0, np.maximum(needed, self._exponent), self._exponent)
        merged = np.zeros_like(self._counts)
        shift = np.minimum(needed - self._exponent, 62)
        bar = np.arange(BARS) >> shift[:, None]
        np.add.at(merged, (np.arange(len(merged))[:, None], bar), self._counts)
        self._exponent, self._counts = needed, merged
        at = np.ldexp(value.astype(np.float64), -needed[feature]).astype(np.int64)
        np.add.at(self._counts, (feature, at), 1)

    def result(self, feature: int) -> tuple[float, tuple[int, ...]]:
        """Return the width of a bar, and the counts up to the last that is not 0."""
        counts = np.trim_zeros(self._counts[feature], "b").tolist()
        return (float(np.ldexp(1.0, self._exponent[feature])) if counts else 0.0), tuple(counts)


class Tallies:
    """How often features fire on every value of something, such as a token, and how strongly."""

    def __init__(self, features: int, values: int) -> None:
        self._shape = (features, values)
        self.counts = csr_matrix(self._shape, dtype=np.int64)
        self.sums = csr_matrix(self._shape, dtype=np.float64)
        self.base = np.zeros(values, dtype=np.int64)

    def update(
        self,
        values: Int64[np.ndarray, "contexts positions"],
        feature: Int64[np.ndarray, " entries"],
        at: Int64[np.ndarray, " entries"],
        strength: Float32[np.ndarray, " entries"],
    ) -> None:
        """Count some contexts.

        Args:
            values: the value of every token, END_OF_TEXT at position 0 left out.
            feature: that fires.
            at: the value where it does.
            strength: its activation.
        """
        self.base += np.bincount(values.ravel(), minlength=len(self.base))
        ones = np.ones(len(at), dtype=np.int64)
        self.counts += csr_matrix((ones, (feature, at)), shape=self._shape)
        self.sums += csr_matrix((strength.astype(np.float64), (feature, at)), shape=self._shape)

    def specific(self, feature: int, names: Sequence[str], count: int) -> tuple[Specificity, ...]:
        """Return the values on which a feature's activations sum to most, most first."""
        sums, counts = self.sums[[feature]], self.counts[[feature]].toarray()[0]
        best = sums.indices[np.lexsort((sums.indices, -sums.data))[:count]]
        return tuple(
            Specificity(
                names[value],
                float(sums[0, value] / sums.sum()),
                float(counts[value] / counts.sum()),
                float(counts[value] / self.base[value]),
                float(self.base[value] / self.base.sum()),
            )
            for value in best.tolist()
        )


def _nothing(window: int) -> Entries:
    at, value = np.zeros(0, np.int64), np.zeros(0, np.float32)
    around = np.zeros((0, window), np.float32)
    return Entries(at, at.astype(np.uint64), at.astype(np.float64), at, value, around)


class _Pass:
    """Everything that is counted and kept while a text goes by."""

    def __init__(self, features: int, contexts: Contexts, vocabulary: int, panels: Panels) -> None:
        self.panels, self.contexts = panels, contexts
        self.length = contexts.tokens.shape[1]
        self.window = np.arange(-panels.before, panels.after + 1)
        self.histograms = Histograms(features)
        self.words, self.kinds = Tallies(features, vocabulary), Tallies(features, len(LABELS))
        self.top = self.drawn = _nothing(len(self.window))
        self.maximum = np.zeros(features)

    def update(self, start: int, f: Float[np.ndarray, "some length features"]) -> None:
        """Take in the activations of the contexts from `start` on."""
        part = slice(start, start + len(f))
        tokens, labels = self.contexts.tokens[part], self.contexts.labels[part]
        self.maximum = np.maximum(self.maximum, f.max((0, 1)))
        context, position, feature = np.nonzero(f > 0)
        value = f[context, position, feature]
        self.histograms.update(feature, value)
        for tallies, of in ((self.words, tokens), (self.kinds, labels)):
            wide = of.astype(np.int64)
            tallies.update(wide[:, 1:], feature, wide[context, position], value)

        lot = lots(tokens, self.panels.seed)
        first = start * self.length
        share = lot[context, position] / 2.0**64
        places = (context, position, feature)
        drawn = self._entries(f, lot, places, share, first)
        count = DRAWN * self.panels.quantiles
        self.drawn = self._joined(self.drawn, drawn, f, first, count)

        peak = f.argmax(1)
        context, feature = np.nonzero(f.max(1) > 0)
        position = peak[context, feature]
        order = -f[context, position, feature].astype(np.float64)
        places = (context, position, feature)
        found = self._entries(f, lot, places, order, first)
        self.top = self._joined(self.top, found, f, first, self.panels.top)

    def _entries(
        self,
        f: Float[np.ndarray, "some length features"],
        lot: UInt64[np.ndarray, "some length"],
        places: tuple[np.ndarray, np.ndarray, np.ndarray],
        order: Float64[np.ndarray, " entries"],
        first: int,
    ) -> Entries:
        context, position, feature = places
        around = np.zeros((len(context), len(self.window)), np.float32)
        row = first + context * self.length + position
        return Entries(feature, lot[context, position], order, row, f[places], around)

    def _joined(
        self,
        held: Entries,
        new: Entries,
        f: Float[np.ndarray, "some length features"],
        first: int,
        count: int,
    ) -> Entries:
        """Return the best of two sets; what surrounds the new ones is read off now, or never."""
        both = Entries(*(np.concatenate(pair) for pair in zip(held, new, strict=True)))
        best = both.take(kept(both, count))
        fresh = np.flatnonzero(best.row >= first)
        context, position = np.divmod(best.row[fresh] - first, self.length)
        inside = (position[:, None] + self.window).clip(0, self.length - 1)
        best.around[fresh] = f[context[:, None], inside, best.feature[fresh, None]]
        return best

    def examples(self, entries: Entries, words: Sequence[bytes]) -> tuple[Example, ...]:
        """Return entries as examples; their windows end where the context does."""
        found = []
        for row, value, around in zip(
            entries.row.tolist(), entries.value.tolist(), entries.around, strict=True
        ):
            context, position = divmod(row, self.length)
            inside = position + self.window
            inside = inside[(inside > 0) & (inside < self.length)]
            # A character has at most four bytes: its first may be in the token third before.
            earlier = max(int(inside[0]) - 3, 0)
            tokens = self.contexts.tokens[context, earlier : inside[-1] + 1]
            skipped = int(inside[0]) - earlier
            found.append(
                Example(
                    context,
                    position,
                    LABELS[self.contexts.labels[context, position]],
                    value,
                    int(position - inside[0]),
                    tuple(tokens[skipped:].tolist()),
                    tuple(pieces(words, tokens)[skipped:]),
                    tuple(around[inside - position + self.panels.before].tolist()),
                )
            )
        return tuple(found)

    def quantiles(self, entries: Entries, words: Sequence[bytes]) -> tuple[Quantile, ...]:
        """Return some of the examples drawn for a feature, in parts of equal size by strength."""
        found = []
        by_strength = np.lexsort((entries.row, -entries.value))
        for part in np.array_split(by_strength, self.panels.quantiles):
            if len(part):
                value = entries.value[part]
                lowest = np.argsort(entries.order[part], kind="stable")[: self.panels.per_quantile]
                shown = self.examples(entries.take(part[np.sort(lowest)]), words)
                found.append(Quantile(float(value.min()), float(value.max()), shown))
        return tuple(found)


def nearest(dictionary: Dictionary, features: Sequence[int], count: int) -> list[tuple[Near, ...]]:
    """Return, of each feature, those whose decoder rows have the greatest cosine with its own."""
    directions = torch.nn.functional.normalize(dictionary.directions, dim=1)
    found = []
    for feature in features:
        cosine = directions @ directions[feature]
        cosine[feature] = -torch.inf  # itself
        best = cosine.topk(min(count, len(cosine) - 1))
        found.append(tuple(map(Near, best.indices.tolist(), best.values.tolist())))
    return found


def extremes(
    dictionary: Dictionary, directions: Float[Tensor, "n d_in"], names: Sequence[str], count: int
) -> list[tuple[tuple[Promoted, ...], tuple[Promoted, ...]]]:
    """Return the tokens that each direction promotes most, and those that it suppresses most.

    By `shared.features.logits.logit_weights`, the extreme ones first; none for mlp_pre.
    """
    found = []
    for part in torch.split(directions, CHUNK):
        weights = logit_weights(dictionary, part)
        if weights is None:
            return [((), ())] * len(directions)
        weights = weights[:, : len(names)]  # a model may have room for more than its tokenizer's
        ends = [weights.topk(min(count, weights.shape[1]), largest=up) for up in (True, False)]
        for row in range(len(part)):
            raised, lowered = (
                tuple(
                    Promoted(names[token], logit)
                    for token, logit in zip(
                        end.indices[row].tolist(), end.values[row].tolist(), strict=True
                    )
                )
                for end in ends
            )
            found.append((raised, lowered))
    return found


@torch.no_grad()
def portraits(
    dictionary: Dictionary,
    contexts: Contexts,
    features: Sequence[int],
    panels: Panels = Panels(),
) -> list[Portrait]:
    """Look at features over a text, in one pass for all of them.

    Args:
        dictionary: whose features.
        contexts: the text, see `shared.features.text.contexts_of`.
        features: which.
        panels: how much of each is kept.

    Raises:
        UserError: there is no such feature, or the text is not in tokens of the model.
    """
    words = token_bytes(dictionary.model.tokenizer)
    names = [word(token) for token in words]
    found = _Pass(len(features), contexts, dictionary.model.d_vocab, panels)
    for start, f in firing(dictionary, contexts.tokens, features):
        found.update(start, f)
    directions = dictionary.directions[torch.tensor(list(features))]
    logits = extremes(dictionary, directions, names, panels.listed)
    near = nearest(dictionary, features, panels.listed)
    labels = known.labels(dictionary)
    read = contexts.tokens[:, 1:].size
    result = []
    for number, feature in enumerate(features):
        top, drawn = (held.take(_of(held.feature, number)) for held in (found.top, found.drawn))
        firings = int(found.kinds.counts[[number]].sum())
        width, histogram = found.histograms.result(number)
        result.append(
            Portrait(
                feature,
                labels.get(feature),
                link(dictionary, feature),
                read,
                firings,
                float(found.maximum[number]),
                float(found.kinds.sums[[number]].sum()) / max(firings, 1),
                width,
                histogram,
                found.words.specific(number, names, panels.listed),
                found.kinds.specific(number, LABELS, panels.listed),
                found.examples(top, words),
                found.quantiles(drawn, words),
                near[number],
                *logits[number],
            )
        )
    return result


def _of(features: Int[np.ndarray, " entries"], number: int) -> Int64[np.ndarray, " some"]:
    return np.flatnonzero(features == number)
