"""Byte-level BPE, as in GPT-2: any text is tokens, and rare characters fall into their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shared.errors import UserError
from shared.files import atomic

END_OF_TEXT = "<|endoftext|>"
"""Separates documents and begins every context; its id is 0."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train byte-level BPE with `vocabulary` tokens, the 256 bytes and END_OF_TEXT among them.

    Raises UserError for a vocabulary that has no room for bytes or does not fit into uint16.
    """
    if not 257 <= vocabulary <= 2**16:
        raise UserError(f"vocabulary is {vocabulary}: choose 257 to 65536")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json atomically."""
    with atomic(path) as temporary:
        temporary.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises UserError naming a file that is missing or is not one."""
    if not path.exists():
        raise UserError(f"no tokenizer at {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is not a tokenizer: {error}") from None


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of every token, by id. END_OF_TEXT stands for none."""
    # GPT-2's table: printable bytes stand for themselves, the others for code points from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    value = {chr(byte): byte for byte in printable}
    value.update({chr(256 + index): byte for index, byte in enumerate(others)})
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    words = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    return [
        b"" if word in special else bytes(value[character] for character in word or "")
        for word in words
    ]
