"""Text in the short contexts of this paper (section 2.1: 64 tokens)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared.corpus.shards import Contexts, corpus_folder, load_contexts
from shared.errors import UserError

LENGTH = 64


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
            f"longer ones"
        )

    def cut(array: np.ndarray) -> np.ndarray:
        pieces = array[:, 1 : 1 + inside // body * body].reshape(-1, body)
        first = array[:, :1].repeat(inside // body, axis=0)
        return np.concatenate([first, pieces], axis=1)

    return Contexts(cut(contexts.tokens), cut(contexts.labels), cut(contexts.documents))


def load_split(folder: Path, split: str, length: int = LENGTH) -> Contexts:
    """Return the text of a split ("train", "validation", "select" or "score").

    `folder` is that of a run, whose name is the profile's.
    """
    return shortened(load_contexts(corpus_folder(folder.name) / f"{split}.safetensors"), length)
