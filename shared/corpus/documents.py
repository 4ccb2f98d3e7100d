"""What a corpus is made of: documents, each of one kind."""

from __future__ import annotations

from typing import NamedTuple

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
