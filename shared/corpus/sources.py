"""Text of one's own: a local folder, or a dataset of a hub, behind the corpus' interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.corpus.build import SPLITS, split_of
from shared.corpus.documents import LABELS, Document
from shared.corpus.shards import Contexts, pack
from shared.corpus.tokenizer import END_OF_TEXT
from shared.errors import UserError
from shared.progress import progress

KINDS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
"""File endings that are read, and the loader of `datasets` that reads them."""
CHUNK = 1000  # documents tokenized at a time


def _documents(rows: Iterable[Any], field: str, origin: str) -> Iterator[Document]:
    for number, row in enumerate(rows):
        if field not in row:
            raise UserError(
                f"{origin} has no field {field!r}: name one of {', '.join(sorted(row))}"
            )
        if row[field]:
            yield Document(str(row[field]), "text", f"{origin}:{number}")


@dataclass(frozen=True)
class LocalText:
    """The .txt files (one document each), .jsonl and .parquet files (one a row) of a folder."""

    folder: Path
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        """Yield the documents, files in alphabetical order.

        Raises UserError for a folder without such files, or rows without the field.
        """
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

        files = sorted(path for path in self.folder.rglob("*") if path.suffix in KINDS)
        if not files:
            raise UserError(
                f"{self.folder} holds no {', '.join(KINDS)} file: choose another folder"
            )
        for path in files:
            origin = str(path.relative_to(self.folder))
            options = {"sample_by": "document"} if path.suffix == ".txt" else {}
            try:
                rows = load_dataset(
                    KINDS[path.suffix],
                    data_files=str(path),
                    split="train",
                    streaming=True,
                    **options,
                )
                yield from _documents(rows, self.field, origin)
            except (DatasetGenerationError, ValueError, OSError) as error:
                raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class HubText:
    """A dataset of the Hugging Face hub, streamed: nothing but what is used is downloaded."""

    name: str
    split: str = "train"
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        """Yield the documents. Raises UserError when the hub or the dataset is out of reach."""
        from datasets import load_dataset

        try:
            rows = load_dataset(self.name, split=self.split, streaming=True)
        except Exception as error:  # the hub's client raises many kinds
            raise UserError(
                f"the dataset {self.name!r} cannot be had ({str(error).splitlines()[0][:120]}): "
                "use the embedded corpus, a local folder, or go online"
            ) from None
        yield from _documents(rows, self.field, self.name)


def tokenize(
    documents: Iterator[Document], tokenizer: Tokenizer, length: int, tokens: int, seed: int = 0
) -> dict[str, Contexts]:
    """Return the splits of some documents, in contexts of `length` tokens, about `tokens` in all.

    A document belongs to a split by the hash of its name, so that more text later moves none.
    """
    encoded: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    have = 0
    with progress("tokens", tokens) as advance:
        while have < tokens and (chunk := list(islice(documents, CHUNK))):
            for document, item in zip(
                chunk, tokenizer.encode_batch([document.text for document in chunk]), strict=True
            ):
                encoded[split_of(document.origin, seed)].append(item.ids)
                have += len(item.ids)
                advance(len(item.ids))
    label = LABELS.index("text")
    end_of_text = tokenizer.token_to_id(END_OF_TEXT) or 0
    return {
        split: pack(items, [label] * len(items), length, end_of_text)
        for split, items in encoded.items()
    }
