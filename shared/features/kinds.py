"""Steering towards a known kind of text, and counting how much of it the samples hold.

The feature of a kind is the one whose activation correlates most with the label of the text
(Pearson, over tokens; Towards Monosemanticity, section "Detailed Investigations of Individual
Features", correlates features with a proxy of a kind). What the samples hold is counted by a rule
on characters that knows neither the model nor the feature: the blocks of Unicode for scripts, and
for encodings runs of their characters. `detection` says on labelled text how good a rule is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.dictionary import Dictionary
from shared.features.steer import Sampling, Sweep, natural_strength, sweep
from shared.progress import progress

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

_HAN, _KANA, _MARKS = "\u4e00-\u9fff", "\u3041-\u30ff", "\u3000-\u3003"
_EAST = f"{_HAN}{_KANA}{_MARKS}"
RULES = {  # no class holds white space, which is never counted
    "arabic": "[\u0600-\u06ff]+",
    "hebrew": "[\u0590-\u05ff]+",
    "russian": "[\u0400-\u04ff]+",
    "greek": "[\u0370-\u03ff]+",
    "thai": "[\u0e00-\u0e7f]+",
    "bengali": "[\u0980-\u09ff]+",
    "armenian": "[\u0530-\u058f]+",
    # Japanese mixes kana with Chinese characters: a run of both is Japanese if it has any kana.
    "japanese": f"[{_HAN}{_MARKS}]*[{_KANA}][{_EAST}]*",
    "chinese": f"(?<![{_EAST}])[{_HAN}{_MARKS}]+(?![{_EAST}])",
    "dna": r"(?<!\w)[ACGT]{8,}(?!\w)",
    "hex": r"(?<!\w)(?=[a-fA-F]*\d)(?=\d*[a-fA-F])(?:[\da-f]{12,}|[\dA-F]{12,})(?!\w)",
    "base64": (
        r"(?<![\w+/])(?=[A-Z\d+/]*[a-z])(?=[a-z\d+/]*[A-Z])(?=[a-zA-Z+/]*\d)"
        r"[a-zA-Z\d+/]{16,}={0,2}(?!\w)"
    ),
}
"""A kind of text, and the regular expression of the runs that count as it."""

MEANT = {"base64": ("base64", "base64_ascii")}
"""The labels that a kind stands for, if not that of its name: the rule cannot tell them apart."""

STRENGTHS = (0.5, 0.75, 1.0, 1.5)
"""By default, times `shared.features.steer.natural_strength`."""


ONCE = Sampling(samples=1)


def known_kind(kind: str) -> str:
    """Return the name of a kind that has a rule. Raises UserError listing those."""
    if kind not in RULES:
        raise UserError(f"no rule tells {kind!r}: choose one of {', '.join(sorted(RULES))}")
    return kind


def share(kind: str, texts: Sequence[str]) -> float:
    """Return which share of the characters of some texts, without white space, is of a kind.

    Raises UserError for a kind without a rule.
    """
    found = re.compile(RULES[known_kind(kind)]).findall
    counted = sum(len(run) for text in texts for run in found(text))
    characters = sum(len("".join(text.split())) for text in texts)
    return counted / characters if characters else 0.0


def _is_kind(kind: str, labels: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    meant = MEANT.get(kind, (kind,))
    return np.isin(labels, [LABELS.index(label) for label in meant])


def half(contexts: Contexts, kind: str, count: int) -> Contexts:
    """Return up to `count` contexts, half of which hold some of a kind; both halves evenly spread.

    A kind is rare, so that few contexts taken as they come hold few documents of it.
    """
    holds = _is_kind(kind, contexts.labels[:, 1:]).any(1)
    rows = [
        own[np.unique(np.linspace(0, len(own) - 1, count // 2).astype(int))]
        for own in (np.flatnonzero(holds), np.flatnonzero(~holds))
        if len(own)
    ]
    return contexts.select(np.sort(np.concatenate(rows)))


class Detection(NamedTuple):
    """How a rule does on labelled text."""

    found: float
    """Share of the characters of the kind that it counts."""
    mistaken: float
    """Share of the characters of all other kinds that it counts."""
    share: float
    """Share of the kind in all the text, as it counts."""


def detection(kind: str, contexts: Contexts, tokenizer: Tokenizer) -> Detection:
    """Return how well the rule of a kind tells labelled text.

    Raises UserError without a rule, or where there is none of the kind.
    """
    own: list[str] = []
    others: list[str] = []
    for tokens, labels, documents in zip(
        contexts.tokens, contexts.labels, contexts.documents, strict=True
    ):
        borders = np.flatnonzero(np.diff(documents)) + 1
        for piece in np.split(np.arange(len(tokens)), borders):
            if documents[piece[0]] >= 0:  # otherwise it is END_OF_TEXT
                text = tokenizer.decode(tokens[piece].tolist())
                (own if _is_kind(kind, labels[piece[:1]]).all() else others).append(text)
    found = Detection(share(kind, own), share(kind, others), share(kind, own + others))
    if not found.found:
        raise UserError(f"the text has no {kind}: give more of it")
    return found


class Specific(NamedTuple):
    """The feature of a kind of text."""

    feature: int
    correlation: float
    """Pearson, of its activation with the label, over tokens."""
    precision: float
    """Share of the kind among tokens where it is active by over two thirds of its maximum."""
    maximum: float
    """Its greatest activation on any token."""


@torch.no_grad()
def _activations(dictionary: Dictionary, contexts: Contexts, batch: int = 16) -> csc_matrix:
    """Return the feature activations of all tokens but those at position 0, [rows, d_sae]."""
    from scipy.sparse import csr_matrix, vstack

    found = []
    with progress("reading features", len(contexts)) as advance:
        for at in range(0, len(contexts), batch):
            tokens = torch.from_numpy(contexts.tokens[at : at + batch].astype(np.int64))
            x = dictionary.activations(tokens.to(dictionary.model.device))
            found.append(csr_matrix(dictionary.encode(x[:, 1:]).flatten(0, 1).cpu().numpy()))
            advance(len(tokens))
    return vstack(found).tocsc()


def most_specific(dictionary: Dictionary, contexts: Contexts, kind: str) -> Specific:
    """Return the feature whose activation correlates most with a label, over labelled text.

    Raises:
        UserError: there is no such kind, none of it in the text, or the text is not in the model's
            tokens.
    """
    from scipy.sparse import csc_matrix

    from shared.metrics.correlation import pearson

    truth = _is_kind(known_kind(kind), contexts.labels[:, 1:]).ravel()
    if not truth.any():
        raise UserError(f"the text has no {kind}: give more of it")
    if contexts.tokens.max() >= dictionary.model.d_vocab:
        raise UserError(f"the text is not in tokens of {dictionary.model.name}: choose its model")
    f = _activations(dictionary, contexts)
    correlation = pearson(f, csc_matrix(truth[:, None].astype(np.float64)))[:, 0]
    best = int(correlation.argmax())
    activation = f[:, [best]].toarray()[:, 0]
    maximum = float(activation.max())
    strong = activation > 2 / 3 * maximum
    return Specific(best, float(correlation[best]), float(truth[strong].mean()), maximum)


def plain_prompts(
    contexts: Contexts, length: int, count: int, seed: int
) -> Int64[Tensor, "{count} {length}+1"]:
    """Return beginnings of contexts that are plain text or code, END_OF_TEXT first.

    Args:
        contexts: where they are from.
        length: tokens of each, without END_OF_TEXT.
        count: how many of them are drawn.
        seed: of the draw.

    Raises:
        UserError: there are not as many.
    """
    labels, documents = (x[:, 1 : length + 1] for x in (contexts.labels, contexts.documents))
    plain = np.isin(labels, [LABELS.index("text"), LABELS.index("code")]).all(1)
    usable = np.flatnonzero(plain & (documents == documents[:, :1]).all(1))
    if len(usable) < count:
        raise UserError(f"{len(usable)} contexts begin with plain text, not {count}: give more")
    rows = np.random.default_rng(seed).choice(usable, count, replace=False)
    return torch.from_numpy(contexts.tokens[rows, : length + 1].astype(np.int64))


@dataclass(frozen=True)
class KindShare:
    """What steering with the feature of a kind of text does to its share in samples."""

    kind: str
    specific: Specific
    detection: Detection
    sweep: Sweep

    @property
    def gain(self) -> Float64[np.ndarray, "seeds strengths"]:
        """How many times its share without steering the kind's share is.

        Without steering is the greater of two: what the plain samples of the seed hold, often none,
        and what the whole corpus holds.
        """
        plain = np.maximum(self.sweep.plain_share, self.detection.share)
        return self.sweep.share / plain[:, None]


def kind_share(
    dictionary: Dictionary,
    kind: str,
    select: Contexts,
    score: Contexts,
    sampling: Sampling = ONCE,
    strengths: Sequence[float] = STRENGTHS,
    seeds: int = 3,
    prompts: int = 16,
    prompt_length: int = 12,
) -> KindShare:
    """Steer plain prompts with the feature of a kind of text; count that kind in the samples.

    The strength is added (mode "add") at every position.

    Args:
        dictionary: whose features they are.
        kind: one of RULES.
        select: labelled text, of which the feature is chosen.
        score: labelled text that shares no document with it: the prompts, and a check of the rule.
        sampling: how the prompts are continued.
        strengths: times the strength at which s·d_i is as long as the activations of the prompts.
        seeds: of the prompts and of the sampling.
        prompts: for each seed.
        prompt_length: in tokens.

    Raises:
        UserError: there is no such kind, or too little text of the model's tokens.
    """
    checked = detection(kind, score, dictionary.model.tokenizer)
    specific = most_specific(dictionary, select, kind)
    texts = [
        plain_prompts(score, prompt_length, prompts, sampling.seed + n).to(dictionary.model.device)
        for n in range(seeds)
    ]
    unit = natural_strength(dictionary, torch.cat(texts), specific.feature)
    found = sweep(
        dictionary,
        texts,
        [specific.feature],
        "add",
        [unit * strength for strength in strengths],
        sampling,
        count=lambda samples: share(kind, samples),
    )
    return KindShare(kind, specific, checked, found)
