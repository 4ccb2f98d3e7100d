"""Generated documents of known kind: scripts, DNA, base64, hex.

Their labels are the ground truth of a feature's specificity. Towards Monosemanticity finds features
for Arabic, Hebrew, DNA and base64 in the Pile, where these contexts are rare.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from faker import Faker

from shared.corpus.documents import Document

Generator = np.random.Generator


class Size(NamedTuple):
    """How long the documents of a slice are."""

    characters: tuple[int, int]
    """Of a script or DNA: from, to."""
    bytes: tuple[int, int]
    """That base64 or hex encodes: from, to."""
    sentences: int
    """Of a script, in a paragraph: up to."""


Writer = Callable[[Generator, str, Size], str]
"""Writes a document with random numbers, from the corpus' own text if need be, of some size."""

LOCALES = {
    "arabic": "ar_AA",
    "hebrew": "he_IL",
    "russian": "ru_RU",
    "greek": "el_GR",
    "chinese": "zh_CN",
    "japanese": "ja_JP",
    "thai": "th_TH",
    "bengali": "bn_BD",
    "armenian": "hy_AM",
}

LONG = Size((200, 1500), (60, 600), 5)
SHORT = Size((40, 200), (20, 120), 1)
"""For text to measure on, where independent documents count more than long ones."""


def _wrap(text: str, width: int) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


def _script(locale: str) -> Writer:
    """Return a writer of paragraphs in the language of a Faker locale."""
    fake = Faker(locale)

    def write(rng: Generator, _: str, size: Size) -> str:
        fake.seed_instance(int(rng.integers(2**31)))
        length = int(rng.integers(*size.characters))
        sentences: list[str] = []
        while sum(map(len, sentences)) < length:
            sentences.append(fake.paragraph(nb_sentences=int(rng.integers(size.sentences)) + 1))
        return "\n".join(sentences)

    return write


def _dna(rng: Generator, _: str, size: Size) -> str:
    """Write a sequence of independent bases in lines of 60, as in a FASTA file."""
    return _wrap("".join(rng.choice(list("ACGT"), int(rng.integers(*size.characters)))), 60)


def _random_base64(rng: Generator, _: str, size: Size) -> str:
    data = rng.bytes(int(rng.integers(*size.bytes)))
    return _wrap(base64.b64encode(data).decode(), int(rng.choice([64, 76, 10_000])))


def _ascii_base64(rng: Generator, text: str, size: Size) -> str:
    """Encode a piece of the corpus' own text: the paper tells this kind of base64 apart."""
    data = text.encode("ascii", "ignore")
    length = int(rng.integers(*size.bytes))
    start = int(rng.integers(max(1, len(data) - length)))
    encoded = base64.b64encode(data[start : start + length]).decode()
    return _wrap(encoded, int(rng.choice([64, 76, 10_000])))


def _hex(rng: Generator, _: str, size: Size) -> str:
    digits = rng.bytes(int(rng.integers(*size.bytes))).hex()
    digits = digits.upper() if rng.random() < 0.3 else digits
    return _wrap(digits, int(rng.choice([32, 40, 64])))


WRITERS: dict[str, Callable[[], Writer]] = {
    **{label: partial(_script, locale) for label, locale in LOCALES.items()},
    "dna": lambda: _dna,
    "base64": lambda: _random_base64,
    "base64_ascii": lambda: _ascii_base64,
    "hex": lambda: _hex,
}
"""How to write a document of each kind; Faker's word lists are read on first use."""


def documents(label: str, seed: int, texts: list[str], size: Size = LONG) -> Iterator[Document]:
    """Yield documents of one kind without end, the same for the same seed.

    `texts` is the corpus' own English text, from which base64 of ASCII text is made.
    """
    rng = np.random.default_rng([seed, *label.encode()])
    write = WRITERS[label]()
    while True:
        text = texts[int(rng.integers(len(texts)))]
        yield Document(write(rng, text, size), label, f"slice/{label}")
