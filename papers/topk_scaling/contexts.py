"""Text in the short contexts of this paper (section 2.1: 64 tokens)."""

from __future__ import annotations

from pathlib import Path

from shared.corpus.shards import Contexts, corpus_folder, load_contexts, shortened

LENGTH = 64


def load_split(folder: Path, split: str, length: int = LENGTH) -> Contexts:
    """Return the text of a split ("train", "validation", "select" or "score").

    `folder` is that of a run, whose name is the profile's.
    """
    return shortened(load_contexts(corpus_folder(folder.name) / f"{split}.safetensors"), length)
