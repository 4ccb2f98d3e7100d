"""What a corpus is made of: documents, each of one kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

LABELS = (
    "text",
    "code",
    "arabic",
    "hebrew",
    "russian",
    "greek",
    "chinese",
    "japanese",
    "thai",
    "bengali",
    "armenian",
    "dna",
    "base64",
    "base64_ascii",
    "hex",
)
"""The kinds of document. A token's label is the index of its document's kind in this tuple."""


class Document(NamedTuple):
    """One document: its text, its kind (one of LABELS), and where it comes from."""

    text: str
    label: str
    origin: str


class Source(Protocol):
    """Anything that yields documents, in the same order every time."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents."""
        ...
