import numpy as np
import pytest

from papers.topk_scaling import contexts
from papers.topk_scaling.contexts import load_split, shortened
from shared.corpus.shards import Contexts, save_contexts
from shared.errors import UserError


def made_up(length=10):
    tokens = np.arange(1, 1 + 2 * length, dtype=np.uint16).reshape(2, length)
    tokens[:, 0] = 0
    documents = (tokens // 4).astype(np.int32)
    documents[:, 0] = -1
    return Contexts(tokens, (tokens % 3).astype(np.uint8), documents)


def test_every_piece_starts_with_end_of_text_and_tokens_keep_their_order_and_labels():
    short = shortened(made_up(), 4)
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
    assert shortened(made_up(), 8).tokens.tolist() == [
        [0, *range(2, 9)],
        [0, *range(12, 19)],
    ]
    np.testing.assert_array_equal(shortened(made_up(), 10).tokens, made_up().tokens)


def test_contexts_that_are_too_short():
    with pytest.raises(UserError, match="have 10 tokens, and 11 are needed"):
        shortened(made_up(), 11)


def test_a_split_is_read_from_the_corpus_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(contexts, "corpus_folder", lambda profile: tmp_path / profile)
    save_contexts(tmp_path / "smoke" / "score.safetensors", made_up(), {})
    found = load_split(tmp_path / "anywhere" / "smoke", "score", 4)
    np.testing.assert_array_equal(found.tokens, shortened(made_up(), 4).tokens)
