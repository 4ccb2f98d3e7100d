"""The activations of some features over a text, a few contexts at a time, and what tokens say."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt16

from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.dictionary import Dictionary
from shared.progress import progress

HELD = 2**23
"""Feature activations that are held at once, those that are zero included."""
SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
UNFINISHED = "·"
"""Shown for a token that ends inside a character; the token that completes it shows it."""


def spread(contexts: Contexts, tokens: int) -> Contexts:
    """Return contexts from all over a text, at least one, with at most so many tokens."""
    wanted = min(len(contexts), max(1, tokens // contexts.tokens.shape[1]))
    return contexts.select(np.linspace(0, len(contexts) - 1, wanted).round().astype(int))


@torch.inference_mode()
def firing(
    dictionary: Dictionary,
    tokens: UInt16[np.ndarray, "contexts length"],
    features: Sequence[int],
    label: str = "reading features",
) -> Iterator[tuple[int, Float[np.ndarray, "some length features"]]]:
    """Yield the first of some contexts, and the activations of features on them; 0 at position 0.

    Args:
        dictionary: whose features.
        tokens: the contexts, in order.
        features: which of them.
        label: shown with the progress.

    Raises:
        UserError: there is no such feature, or the contexts are not those of the model.
    """
    model = dictionary.model
    chosen = torch.tensor([dictionary.feature(feature) for feature in features])
    length, last = tokens.shape[1], int(tokens.max(initial=0))
    if length > model.n_ctx or last >= model.d_vocab:
        raise UserError(
            f"{model.name} reads up to {model.n_ctx} tokens out of {model.d_vocab}, and the text "
            f"has contexts of {length} and token {last}: give other text"
        )
    batch = max(1, HELD // (length * dictionary.d_sae))
    with progress(label, len(tokens)) as advance:
        for at in range(0, len(tokens), batch):
            some = torch.from_numpy(tokens[at : at + batch].astype(np.int64)).to(model.device)
            f = dictionary.encode(dictionary.activations(some).flatten(0, 1))
            f = f[:, chosen.to(f.device)].view(len(some), length, len(chosen))
            f[:, 0] = 0
            yield at, f.float().cpu().numpy()
            advance(len(some))


def pieces(words: Sequence[bytes], tokens: Integer[np.ndarray, " length"]) -> list[str]:
    """Return what every token of a text shows, line breaks and tabs as signs.

    Put together they are the text. A character of several tokens is shown by its last one, the
    others as UNFINISHED. Bytes that are no UTF-8 show as �, and END_OF_TEXT as ∎.

    Args:
        words: the bytes of every token, as `shared.corpus.tokenizer.token_bytes` gives them.
        tokens: of the text.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    found = []
    for token in tokens.tolist():
        text = decode(words[token])
        text = "".join(SIGNS.get(character, character) for character in text)
        found.append(text or (UNFINISHED if words[token] else "∎"))
    return found


def word(token: bytes) -> str:
    r"""Return a token alone: spaces and breaks as signs, incomplete UTF-8 as \xd8."""
    text = token.decode("utf-8", "backslashreplace")
    signs = {**SIGNS, " ": "␣"}
    return "".join(signs.get(character, character) for character in text) or "∎"
