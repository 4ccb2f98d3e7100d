"""Binary tasks for probes: what is known of every token of the corpus.

Section 4.2 probes for 61 tasks, each a data set of its own (Table 1). They are not public
(openai/sparse_autoencoder, issue 14). Here a task is a property of a token that follows from the
text, or the kind of document that the corpus planted. Text without planted kinds, such as that for
GPT-2, has no examples of those, and `usable` leaves them out.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts

Truth = Bool[np.ndarray, "contexts length"]


@dataclass(frozen=True)
class Text:
    """Contexts, and the bytes of every token, by id; END_OF_TEXT has none."""

    table: list[bytes]
    contexts: Contexts

    def matches(self, pattern: bytes) -> Truth:
        """Return which tokens match a regular expression from end to end."""
        whole = re.compile(pattern, re.DOTALL)
        each = [whole.fullmatch(token) is not None for token in self.table]
        return np.array(each)[self.contexts.tokens]

    def count(self, characters: bytes) -> Int[np.ndarray, "contexts length"]:
        """Return how many of some characters each token has."""
        each = [sum(token.count(character) for character in characters) for token in self.table]
        return np.array(each)[self.contexts.tokens]

    @property
    def ends(self) -> Truth:
        """Return which tokens are END_OF_TEXT."""
        return np.array([not token for token in self.table])[self.contexts.tokens]


Task = Callable[[Text], Truth]


def _one_of(words: Iterable[str]) -> bytes:
    return rb" ?(" + "|".join(words).encode() + rb")"


FUNCTION_WORDS = "the a an and or of to in on for with by as is are be that this it not"

TOKEN_CLASSES = {
    "digits": rb" ?\d+",
    "punctuation": rb" ?[!-/:-@\[-`{-~]+",
    "opening bracket": rb".*[(\[{]",
    "closing bracket": rb".*[)\]}].*",
    "quotation mark": rb".*[\"'`].*",
    "comma": rb" ?,",
    "end of sentence": rb"[.!?]",
    "equals sign": rb".*=.*",
    "line break": rb".*\n.*",
    "only spaces": rb"[ \t]+",
    "word after space": rb" [A-Za-z]+",
    "piece without space": rb"[A-Za-z]+",
    "capitalised": rb" ?[A-Z][a-z]+",
    "upper case": rb" ?[A-Z]{2,}",
    "one letter": rb" ?[A-Za-z]",
    "long word": rb" ?[A-Za-z]{7,}",
    "with underscore": rb".*_.*",
    "ends in s": rb" ?[A-Za-z]{2,}s",
    "ends in ed or ing": rb" ?[A-Za-z]+(ed|ing)",
    "function word": _one_of(FUNCTION_WORDS.split()),
    "Python keyword": _one_of(keyword.kwlist),
    "not ASCII": rb".*[\x80-\xff].*",
}
"""What a token is, by the bytes that it stands for: a regular expression from end to end."""

NEXT = ("digits", "punctuation", "line break", "word after space", "capitalised", "closing bracket")
"""Classes of the token that follows, which the model has to predict."""
PREVIOUS = ("line break", "opening bracket", "with underscore")
"""Classes of the token before."""

EARLY = 8
"""Tokens at the start of a context, or of a document."""


def of_kind(text: Text, *kinds: str) -> Truth:
    """Return the tokens of documents of some kinds."""
    wanted = [LABELS.index(kind) for kind in kinds]
    return np.isin(text.contexts.labels, wanted) & (text.contexts.documents >= 0)


def of_class(text: Text, name: str, shift: int = 0) -> Truth:
    """Return the tokens of a class, or those that come before (1) or after (-1) one."""
    here = text.matches(TOKEN_CLASSES[name])
    if shift == 0:
        return here
    found = np.zeros_like(here)
    if shift == 1:
        found[:, :-1] = here[:, 1:]
    else:
        found[:, 1:] = here[:, :-1]
    return found


def at_position(text: Text, start: float, end: float) -> Truth:
    """Return the positions from `start` to before `end`, both shares of the context."""
    length = text.contexts.tokens.shape[1]
    place = np.arange(length) / length
    return np.broadcast_to((place >= start) & (place < end), text.contexts.tokens.shape)


def since(marks: Truth) -> Int[np.ndarray, "contexts length"]:
    """Return how many tokens ago the last mark was; at least the context's length without one."""
    length = marks.shape[1]
    place = np.broadcast_to(np.arange(length), marks.shape)
    return place - np.maximum.accumulate(np.where(marks, place, -length), axis=1)


def of_young_document(text: Text) -> Truth:
    """Return the first tokens of documents that begin within the context."""
    began = text.ends & (np.arange(text.ends.shape[1]) > 0)
    return since(began) <= EARLY


def repeats(text: Text) -> Truth:
    """Return the tokens that the context has had before."""
    tokens = text.contexts.tokens
    order = np.argsort(tokens, axis=1, kind="stable")
    ordered = np.take_along_axis(tokens, order, axis=1)
    found = np.zeros(tokens.shape, dtype=bool)
    np.put_along_axis(found, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return found


def in_brackets(text: Text) -> Truth:
    """Return the tokens after a round bracket that the context opens and has not yet closed."""
    depth = np.cumsum(text.count(b"(") - text.count(b")"), axis=1)
    return depth > np.minimum(np.minimum.accumulate(depth, axis=1), 0)


def in_comment(text: Text) -> Truth:
    """Return the tokens with a # before them, or in them, on the same line."""
    return since(text.count(b"#") > 0) < since(text.count(b"\n") > 0)


def _kind(*kinds: str) -> Task:
    return lambda text: of_kind(text, *kinds)


TASKS: dict[str, Task] = {
    **{f"kind: {kind}": _kind(kind) for kind in LABELS},
    "kind: any base64": _kind("base64", "base64_ascii"),
    "kind: any encoding": _kind("dna", "base64", "base64_ascii", "hex"),
    "kind: any script": _kind(*LABELS[LABELS.index("arabic") : LABELS.index("dna")]),
    **{f"token: {name}": partial(of_class, name=name) for name in TOKEN_CLASSES},
    **{f"next: {name}": partial(of_class, name=name, shift=1) for name in NEXT},
    **{f"previous: {name}": partial(of_class, name=name, shift=-1) for name in PREVIOUS},
    "position: first eighth": partial(at_position, start=0.0, end=1 / 8),
    "position: second half": partial(at_position, start=1 / 2, end=1.0),
    "position: young document": of_young_document,
    "context: repeated token": repeats,
    "context: in brackets": in_brackets,
    "context: after # on the line": in_comment,
}
"""All tasks by name, each a pure function of the text."""


class Labels(NamedTuple):
    """The labels of some tokens for every task, by name."""

    names: tuple[str, ...]
    y: Bool[np.ndarray, "tokens tasks"]


def measured(values: Shaped[np.ndarray, "contexts length"]) -> Shaped[np.ndarray, " tokens"]:
    """Return the values at the measured positions, all but the first and the last.

    Position 0 carries no text, and after the last none is known to follow.
    """
    return values[:, 1:-1].ravel()


def labels(text: Text) -> Labels:
    """Return the labels of all tasks at the measured positions."""
    return Labels(tuple(TASKS), np.stack([measured(task(text)) for task in TASKS.values()], 1))


def usable(y: Bool[np.ndarray, "tokens tasks"], least: int) -> Bool[np.ndarray, " tasks"]:
    """Return which tasks have at least `least` tokens of either class: none rarer is measured."""
    return np.minimum(y.sum(0), (~y).sum(0)) >= least
