import numpy as np
import pytest

from shared.corpus.shards import (
    Contexts,
    digest,
    load_contexts,
    pack,
    save_contexts,
    shard_record,
    shortened,
)
from shared.errors import UserError

ENCODED = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


def contexts():
    return pack(ENCODED, [0, 2, 1], length=5)


def test_documents_follow_one_another_with_an_end_of_text_between_them():
    packed = contexts()
    assert packed.tokens.tolist() == [[0, 5, 6, 7, 0], [0, 8, 9, 0, 10], [0, 11, 12, 13, 0]]
    assert packed.labels.tolist() == [[0, 0, 0, 0, 0], [0, 2, 2, 0, 1], [0, 1, 1, 1, 0]]
    assert packed.documents.tolist() == [
        [-1, 0, 0, 0, -1],
        [-1, 1, 1, -1, 2],
        [-1, 2, 2, 2, -1],
    ]


def test_what_fills_no_context_is_dropped():
    assert len(pack(ENCODED, [0, 0, 0], length=12)) == 1


def test_a_shard_comes_back_as_it_was(tmp_path):
    path = tmp_path / "train.safetensors"
    save_contexts(path, contexts(), {"split": "train"})
    assert digest(load_contexts(path)) == digest(contexts())
    assert shard_record(path) == {"split": "train", "sha256": digest(contexts())}


def test_the_digest_sees_tokens_labels_and_shape():
    packed = contexts()
    other = packed.select(np.array([0, 2, 1]))
    assert len({digest(packed), digest(other), digest(packed.select(slice(0, 2)))}) == 3


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "not a shard"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    path = tmp_path / "train.safetensors"
    save_contexts(path, contexts(), {})
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-3])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"train.safetensors.*dvc repro") as error:
        load_contexts(path)
    assert "\n" not in str(error.value)


def test_the_same_shard_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_contexts(tmp_path / name, contexts(), {"split": "train", "tokens": 15, "rates": {}})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_shard_without_text_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "validation.safetensors"
    save_contexts(path, contexts().select(slice(0, 0)), {})
    with pytest.raises(UserError, match=r"validation\.safetensors holds no text"):
        load_contexts(path)


def numbered(length=10):
    """Two contexts of rising tokens, with labels and documents that follow from the token."""
    tokens = np.arange(1, 1 + 2 * length, dtype=np.uint16).reshape(2, length)
    tokens[:, 0] = 0
    documents = (tokens // 4).astype(np.int32)
    documents[:, 0] = -1
    return Contexts(tokens, (tokens % 3).astype(np.uint8), documents)


def test_every_piece_starts_with_end_of_text_and_tokens_keep_their_order_and_labels():
    short = shortened(numbered(), 4)
    assert short.tokens.tolist() == [
        [0, 2, 3, 4],
        [0, 5, 6, 7],
        [0, 8, 9, 10],
        [0, 12, 13, 14],
        [0, 15, 16, 17],
        [0, 18, 19, 20],
    ]
    np.testing.assert_array_equal(short.labels[:, 1:], short.tokens[:, 1:] % 3)
    np.testing.assert_array_equal(short.documents[:, 1:], short.tokens[:, 1:] // 4)
    assert (short.documents[:, 0] == -1).all()


def test_what_is_left_at_the_end_is_dropped_and_the_whole_length_changes_nothing():
    assert shortened(numbered(), 8).tokens.tolist() == [
        [0, *range(2, 9)],
        [0, *range(12, 19)],
    ]
    np.testing.assert_array_equal(shortened(numbered(), 10).tokens, numbered().tokens)


def test_contexts_that_are_too_short():
    with pytest.raises(UserError, match="have 10 tokens, and 11 are needed"):
        shortened(numbered(), 11)
