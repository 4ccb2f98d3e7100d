"""Contexts of tokens, with a label and a document for every token, in checked files.

A context is END_OF_TEXT and then a run of the documents, which follow one another with END_OF_TEXT
between them. Position 0 therefore never carries text; what is measured leaves it out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8, UInt16
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.errors import UserError
from shared.files import ROOT, atomic


@dataclass(frozen=True)
class Contexts:
    """Contexts of one split.

    tokens: ids; labels: indices into `shared.corpus.documents.LABELS`; documents: numbers that
    are unique within the split (-1 at END_OF_TEXT, whose label is that of plain text).
    """

    tokens: UInt16[np.ndarray, "contexts length"]
    labels: UInt8[np.ndarray, "contexts length"]
    documents: Int32[np.ndarray, "contexts length"]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: slice | np.ndarray) -> Contexts:
        """Return some of the contexts."""
        return Contexts(self.tokens[index], self.labels[index], self.documents[index])


def pack(
    encoded: list[list[int]], labels: list[int], length: int, end_of_text: int = 0
) -> Contexts:
    """Cut documents, in the order given, into contexts of `length` tokens; the rest is dropped.

    Args:
        encoded: the tokens of each document.
        labels: the label of each document.
        length: tokens in a context, END_OF_TEXT at its start included.
    """
    sizes = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
    total = int(sizes.sum() + len(sizes))
    tokens = np.full(total, end_of_text, dtype=np.uint16)
    label = np.zeros(total, dtype=np.uint8)
    document = np.full(total, -1, dtype=np.int32)
    at = 0
    for number, (ids, kind) in enumerate(zip(encoded, labels, strict=True)):
        end = at + len(ids)
        tokens[at:end], label[at:end], document[at:end] = ids, kind, number
        at = end + 1  # leaves one END_OF_TEXT
    count = total // (length - 1)

    def cut(stream: np.ndarray, first: int) -> np.ndarray:
        body = stream[: count * (length - 1)].reshape(count, length - 1)
        return np.concatenate([np.full((count, 1), first, stream.dtype), body], axis=1)

    return Contexts(cut(tokens, end_of_text), cut(label, 0), cut(document, -1))


def digest(contexts: Contexts) -> str:
    """Return the SHA-256 of tokens, labels and documents."""
    sha = hashlib.sha256()
    for array in (contexts.tokens, contexts.labels, contexts.documents):
        sha.update(str(array.shape).encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def save_contexts(path: Path, contexts: Contexts, record: dict[str, Any]) -> None:
    """Write contexts atomically as safetensors, with their hash and a record of their making."""
    arrays = {
        "tokens": contexts.tokens,
        "labels": contexts.labels,
        "documents": contexts.documents,
    }
    about = {**record, "sha256": digest(contexts)}
    # One entry: safetensors writes several in any order, and a shard made again is the same bytes.
    metadata = {"about": json.dumps(about, sort_keys=True)}
    with atomic(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)


def load_contexts(path: Path) -> Contexts:
    """Read contexts and check their hash.

    Raises:
        UserError: the file is missing, truncated, not what was written, or without a context.
    """
    again = "build it again with: dvc repro shared/dvc.yaml"
    if not path.exists():
        raise UserError(f"no token shard at {path}: {again}")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            contexts = Contexts(
                *(file.get_tensor(key) for key in ("tokens", "labels", "documents"))
            )
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): {again}") from None
    if digest(contexts) != about.get("sha256"):
        raise UserError(f"{path} does not match its hash: {again}")
    if not len(contexts):
        raise UserError(f"{path} holds no text: build the corpus with more of it")
    return contexts


def shortened(contexts: Contexts, length: int) -> Contexts:
    """Cut contexts into shorter ones, each with what stands at position 0 in front of its tokens.

    What is left of a context at its end is dropped.

    Raises:
        UserError: the contexts are shorter than that.
    """
    inside, body = contexts.tokens.shape[1] - 1, length - 1
    if inside < body:
        raise UserError(
            f"contexts have {inside + 1} tokens, and {length} are needed: build the corpus with "
            f"longer ones, or ask for fewer"
        )

    def cut(array: np.ndarray) -> np.ndarray:
        pieces = array[:, 1 : 1 + inside // body * body].reshape(-1, body)
        first = array[:, :1].repeat(inside // body, axis=0)
        return np.concatenate([first, pieces], axis=1)

    return Contexts(cut(contexts.tokens), cut(contexts.labels), cut(contexts.documents))


def shard_record(path: Path) -> dict[str, Any]:
    """Return the record of a shard's making and its hash, without reading its tokens."""
    with safe_open(path, framework="numpy") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
    return about


def corpus_folder(profile: str) -> Path:
    """Return the folder with the token shards of a profile, a file for every split."""
    return ROOT / "artifacts" / "shared" / profile / "corpus"
