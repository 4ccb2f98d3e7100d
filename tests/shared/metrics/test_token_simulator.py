import numpy as np
import pytest

from shared.metrics.token_simulator import correlations, predicted

RANDOM = np.random.default_rng(0)


def text(seed, contexts=40, length=20, vocabulary=6):
    return np.random.default_rng(seed).integers(0, vocabulary, (contexts, length)).astype(np.uint16)


def test_a_mean_by_hand():
    """Token 1 has 4 after 0 and 0 after 1; all positions: 4, 0, 2."""
    tokens = np.array([[0, 1, 1, 2]])
    fit = np.array([[[4.0], [0.0], [2.0]]])
    found = predicted(tokens, fit, np.array([[0, 1, 1, 2], [2, 1, 3, 3]]), prior=1.0).ravel()
    one = (4 + 0 + 2) / 3  # mean of token 1, drawn to the mean of all, 2
    two = (2 + 2) / 2
    expected = [(4 + one) / 2, (0 + one) / 2, (2 + two) / 2, one, 2.0, 2.0]
    np.testing.assert_allclose(found, expected)


def test_without_a_prior_the_training_text_gets_its_own_means():
    tokens = text(0)
    by_bigram = RANDOM.random((6, 6))
    fit = by_bigram[tokens[:, :-1], tokens[:, 1:]][..., None]
    np.testing.assert_allclose(predicted(tokens, fit, tokens, prior=0.0), fit)


def test_units_are_told_apart_by_how_much_two_tokens_tell():
    fit_tokens, tokens = text(1, 200), text(2, 200)

    def units(tokens, seed):
        noise = np.random.default_rng(seed).normal(size=tokens[:, 1:].shape)
        two_back = np.concatenate([tokens[:, :1], tokens[:, :-2]], axis=1)
        return np.stack(
            [
                (tokens[:, 1:] == 3) * 2.0,  # a token
                ((tokens[:, 1:] == 3) & (tokens[:, :-1] == 1)) * 2.0,  # a bigram
                (tokens[:, 1:] == 3) * 2.0 + noise,
                (two_back == 3) * 2.0,  # beyond its sight
                np.zeros(tokens[:, 1:].shape),
            ],
            axis=-1,
        )

    fit, actual = units(fit_tokens, 3), units(tokens, 4)
    token, bigram, noisy, far, dead = correlations(predicted(fit_tokens, fit, tokens), actual)
    assert token > 0.99
    assert bigram > 0.95
    # With noise of deviation 1 and a signal of 2 √(1/6 · 5/6), the best there can be.
    signal = 2 * np.sqrt(5 / 36)
    assert noisy == pytest.approx(signal / np.hypot(signal, 1), abs=0.06)
    assert abs(far) < 0.1
    assert dead == 0


def test_correlations_are_those_of_numpy():
    x, y = RANDOM.random((3, 7, 2)), RANDOM.random((3, 7, 2))
    expected = [np.corrcoef(x[..., k].ravel(), y[..., k].ravel())[0, 1] for k in range(2)]
    np.testing.assert_allclose(correlations(x, y), expected)


def test_the_prediction_sees_no_activation_of_the_text_it_predicts_for():
    fit_tokens, tokens = text(5), text(6)
    fit = RANDOM.random((40, 19, 3))
    first = predicted(fit_tokens, fit, tokens)
    later = predicted(fit_tokens, fit, np.concatenate([tokens, text(7)]))
    np.testing.assert_array_equal(first, later[:40])


def test_no_units_are_no_trouble():
    found = predicted(text(8), np.empty((40, 19, 0)), text(9))
    assert found.shape == (40, 19, 0)
    assert correlations(found, found).shape == (0,)
