import itertools
import math
import time

import numpy as np
import pytest
from nltk.lm import MLE, KneserNeyInterpolated

from shared.errors import UserError
from shared.language_models.ngrams import fit

VOCABULARY = 7


def corpus(contexts=12, length=20, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 5, (contexts, length)).astype(np.uint16)
    tokens[:, 0] = 0
    return tokens


def padded(row):
    """A context as the trigram model reads it: END_OF_TEXT twice at the start."""
    return [str(row[0]), *map(str, row)]


def ngrams(tokens, order):
    """The n-grams that end at positions 1, 2 … of each context, as nltk counts them."""
    grams = []
    for row in tokens:
        text = padded(row)
        for end, size in itertools.product(range(2, len(text)), range(1, order + 1)):
            grams.append(tuple(text[end - size + 1 : end + 1]))
    return grams


def nltk_losses(model, tokens, order):
    rows = [padded(row) for row in tokens]
    return np.array(
        [
            [
                -math.log(model.score(text[end], text[end - order + 1 : end]))
                for end in range(2, len(text))
            ]
            for text in rows
        ]
    )


@pytest.mark.parametrize("order", [2, 3])
def test_equals_kneser_ney_of_nltk(order):
    train, held_out = corpus(), corpus(4, seed=1)
    oracle = KneserNeyInterpolated(order, discount=0.6)
    oracle.fit([ngrams(train, order)], vocabulary_text=list("01234"))
    # nltk leaves its first order undiscounted.
    ours = fit(train, order, 5, discounts=[0.0, 0.6, 0.6][:order]).losses(held_out)
    np.testing.assert_allclose(ours, nltk_losses(oracle, held_out, order), rtol=1e-12)


def test_a_unigram_without_discount_is_the_frequencies():
    train, held_out = corpus(), corpus(4, seed=1)
    oracle = MLE(1)
    oracle.fit([ngrams(train, 1)], vocabulary_text=list("01234"))
    ours = fit(train, 1, VOCABULARY, discounts=[0.0]).losses(held_out)
    np.testing.assert_allclose(ours, nltk_losses(oracle, held_out, 1), rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_of_all_next_tokens_sum_to_one_even_after_contexts_never_seen(order):
    model = fit(corpus(), order, VOCABULARY)
    for first, second in itertools.product(range(VOCABULARY), repeat=2):
        rows = [[0, first, second, word] for word in range(VOCABULARY)]
        last = model.losses(np.array(rows, dtype=np.uint16))[:, -1]
        assert np.exp(-last).sum() == pytest.approx(1, abs=1e-12)


def test_a_token_never_seen_gets_the_share_that_the_first_order_sets_aside():
    train = np.array([[0, 1, 1, 2, 2, 2, 3]], dtype=np.uint16)
    model = fit(train, 1, VOCABULARY, discounts=[0.5])
    loss = model.losses(np.array([[0, 6]], dtype=np.uint16))[0, 0]
    assert math.exp(-loss) == pytest.approx(0.5 * 3 / 6 / VOCABULARY)


def test_the_discount_is_estimated_from_the_numbers_counted_once_and_twice():
    # Of the tokens predicted, one occurs once, two occur twice and one three times.
    train = np.array([[0, 1, 2, 2, 3, 3, 4, 4, 4]], dtype=np.uint16)
    assert fit(train, 1, VOCABULARY).levels[0].discount == pytest.approx(1 / (1 + 2 * 2))


def test_position_zero_is_not_predicted():
    tokens = corpus()
    assert fit(tokens, 3, VOCABULARY).losses(tokens).shape == (12, 19)
    assert fit(tokens[:, :2], 1, VOCABULARY).levels[0].totals.sum() == 12


def test_higher_orders_help_where_the_text_is_a_chain_of_pairs():
    rng = np.random.default_rng(0)
    tokens = np.zeros((300, 64), dtype=np.uint16)
    for at in range(2, 64):  # the sum of two tokens decides the third, up to noise
        noise = rng.integers(0, 8, 300) * (rng.random(300) < 0.1)
        start = rng.integers(0, 8, 300) if at < 4 else 0
        tokens[:, at] = (tokens[:, at - 1] + tokens[:, at - 2] + noise + start) % 8
    loss = [fit(tokens[:200], order, 8).losses(tokens[200:]).mean() for order in (1, 2, 3)]
    assert loss[2] < loss[1] - 0.5
    assert loss[1] < loss[0] + 0.02


def test_a_million_tokens_take_a_moment():
    tokens = (np.random.default_rng(0).pareto(1, (4000, 256)) * 10).clip(0, 4095)
    start = time.process_time()
    fit(tokens.astype(np.uint16), 3, 4096)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("order", [0, 4])
def test_other_orders_are_refused(order):
    with pytest.raises(UserError, match="order"):
        fit(corpus(), order, VOCABULARY)


def test_a_token_outside_of_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="vocabulary is 3"):
        fit(corpus(), 1, 3)
