import pytest

from shared.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
)
from shared.errors import UserError

TEXTS = ["the cat sat on the mat", "מה שלום", "def f(x): return x_1", "\x00\xff é ½"] * 5


def test_any_text_is_tokens_and_back():
    tokenizer = train_tokenizer(TEXTS, 300)
    for text in [*TEXTS, "漢字 unseen ☃\n\ttabs"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokens_are_bytes():
    tokenizer = train_tokenizer(TEXTS, 300)
    table = token_bytes(tokenizer)
    assert len(table) == tokenizer.get_vocab_size()
    assert table[tokenizer.token_to_id(END_OF_TEXT)] == b""
    for text in TEXTS:
        assert b"".join(table[index] for index in tokenizer.encode(text).ids) == text.encode()


def test_end_of_text_is_the_first_token():
    assert train_tokenizer(TEXTS, 300).token_to_id(END_OF_TEXT) == 0


@pytest.mark.parametrize("vocabulary", [256, 70_000])
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary):
    with pytest.raises(UserError, match="257 to 65536"):
        train_tokenizer(TEXTS, vocabulary)


def test_a_tokenizer_comes_back_as_it_was(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == tokenizer.to_str()
    with pytest.raises(UserError, match=r"no tokenizer at .*other.json"):
        load_tokenizer(tmp_path / "other.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad.json is not a tokenizer"):
        load_tokenizer(tmp_path / "bad.json")
