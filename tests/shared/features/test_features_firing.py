"""Reading activations a few contexts at a time, and showing tokens."""

import numpy as np
import pytest
import torch

from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features import firing as module
from shared.features.firing import firing, pieces, spread, word


def made(contexts, length=12, seed=0):
    tokens = np.random.default_rng(seed).integers(1, 250, (contexts, length)).astype(np.uint16)
    tokens[:, 0] = 0
    return Contexts(tokens, np.zeros(tokens.shape, np.uint8), np.zeros(tokens.shape, np.int32))


@pytest.mark.parametrize("held", [1, 2 * 12 * 20, 2**20])
def test_activations_are_those_of_all_contexts_at_once(tiny, monkeypatch, held):
    monkeypatch.setattr(module, "HELD", held)
    dictionary, tokens = tiny(), made(5).tokens
    parts = list(firing(dictionary, tokens, [3, 19, 0]))
    assert len(parts) == {1: 5, 480: 3, 2**20: 1}[held]
    assert [start for start, _ in parts] == np.cumsum([0, *(len(f) for _, f in parts)])[
        :-1
    ].tolist()
    together = np.concatenate([f for _, f in parts])
    x = dictionary.activations(torch.from_numpy(tokens.astype(np.int64)))
    expected = dictionary.encode(x)[..., [3, 19, 0]].numpy()
    np.testing.assert_allclose(together[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert not together[:, 0].any()


def test_text_or_features_that_do_not_fit_are_refused(tiny):
    dictionary = tiny()
    with pytest.raises(UserError, match="no feature 20"):
        next(firing(dictionary, made(1).tokens, [20]))
    with pytest.raises(UserError, match="reads up to 12 tokens out of 300"):
        next(firing(dictionary, made(1, length=13).tokens, [1]))
    with pytest.raises(UserError, match="token 300"):
        next(firing(dictionary, np.full((1, 4), 300, np.uint16), [1]))


def test_contexts_are_taken_from_all_over_a_text():
    contexts = made(10)
    np.testing.assert_array_equal(spread(contexts, 36).tokens, contexts.tokens[[0, 4, 9]])
    assert len(spread(contexts, 1)) == 1
    assert len(spread(contexts, 10**9)) == 10


def test_pieces_put_together_are_the_text():
    text = "a “שלום”\n\t𝄞 end"
    data = text.encode()
    for size in (1, 2, 3, 5):
        words = [b"", *(data[i : i + size] for i in range(0, len(data), size))]
        shown = pieces(words, np.arange(1, len(words)))
        assert "".join(shown).replace("·", "") == text.replace("\n", "↵").replace("\t", "⇥")
        assert len(shown) == len(words) - 1
    assert pieces([b"", b"\xd7", b"\xa9"], np.array([1, 2, 0])) == ["·", "ש", "∎"]
    assert pieces([b"", b"\xa9x"], np.array([1])) == ["�x"]


def test_a_token_alone_shows_its_spaces_and_bytes():
    assert word(b" the") == "␣the"
    assert word(b"\n\t") == "↵⇥"
    assert word(b"\xd7a") == "\\xd7a"
    assert word(b"") == "∎"
