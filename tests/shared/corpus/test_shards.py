import numpy as np
import pytest

from shared.corpus.shards import digest, load_contexts, pack, save_contexts, shard_record
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
