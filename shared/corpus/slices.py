"""Generated documents of known kind: scripts, DNA, base64, hex.

Their labels are the ground truth of a feature's specificity. Towards Monosemanticity finds features
for Arabic, Hebrew, DNA and base64 in the Pile, where these contexts are rare.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from faker import Faker

from shared.corpus.documents import Document

Generator = np.random.Generator
Writer = Callable[[Generator, str], str]
"""Writes a document with random numbers, and with a piece of the corpus' own text."""

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
LENGTHS = (200, 1500)  # characters in a document of a script
BYTES = (60, 600)  # bytes that a document of base64 or hex encodes


def _wrap(text: str, width: int) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


def _script(locale: str) -> Writer:
    """Return a writer of paragraphs in the language of a Faker locale."""
    fake = Faker(locale)

    def write(rng: Generator, _: str) -> str:
        fake.seed_instance(int(rng.integers(2**31)))
        length = int(rng.integers(*LENGTHS))
        sentences: list[str] = []
        while sum(map(len, sentences)) < length:
            sentences.append(fake.paragraph(nb_sentences=int(rng.integers(1, 6))))
        return "\n".join(sentences)

    return write


def _dna(rng: Generator, _: str) -> str:
    """Write a sequence of independent bases in lines of 60, as in a FASTA file."""
    return _wrap("".join(rng.choice(list("ACGT"), int(rng.integers(*LENGTHS)))), 60)


def _random_base64(rng: Generator, _: str) -> str:
    data = rng.bytes(int(rng.integers(*BYTES)))
    return _wrap(base64.b64encode(data).decode(), int(rng.choice([64, 76, 10_000])))


def _ascii_base64(rng: Generator, text: str) -> str:
    """Encode a piece of the corpus' own text: the paper tells this kind of base64 apart."""
    data = text.encode("ascii", "ignore")
    size = int(rng.integers(*BYTES))
    start = int(rng.integers(max(1, len(data) - size)))
    encoded = base64.b64encode(data[start : start + size]).decode()
    return _wrap(encoded, int(rng.choice([64, 76, 10_000])))


def _hex(rng: Generator, _: str) -> str:
    digits = rng.bytes(int(rng.integers(*BYTES))).hex()
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


def documents(label: str, seed: int, texts: list[str]) -> Iterator[Document]:
    """Yield documents of one kind without end, the same for the same seed.

    `texts` is the corpus' own English text, from which base64 of ASCII text is made.
    """
    rng = np.random.default_rng([seed, *label.encode()])
    write = WRITERS[label]()
    while True:
        yield Document(write(rng, texts[int(rng.integers(len(texts)))]), label, f"slice/{label}")
