import numpy as np
import pytest

from papers.topk_scaling.n2g import Example, Ngram, Trie, ngrams

A, B, C, D, E, PAD = range(6)


def by_rule(rule):
    """What measures a latent whose activation at the end of a text is `rule(text)`."""

    def measure(texts, latents):
        return np.array([float(rule(text)) for text in texts.tolist()])

    return measure


def explained(rule, *texts, longest=10):
    examples = [Example(0, text, 1.0) for text in texts]
    return ngrams(examples, by_rule(rule), PAD, longest)


def predicted(found, *texts):
    trie = Trie.of([one for one in found if one is not None])
    return [trie.predict(np.array([text]))[0].tolist() for text in texts]


def test_a_latent_of_the_first_position():
    found = explained(lambda text: len(text) == 1, (A,), (B,))
    assert found == [Ngram((None,), True, 1.0)] * 2  # the padding token does as well, but not first
    assert predicted(found, (A, B, C), (C, B, A)) == [[1, 0, 0]] * 2


def test_a_latent_of_one_token():
    found = explained(lambda text: text[-1] == C, (A, B, C), (B, C))
    assert found == [Ngram((C,), False, 1.0)] * 2
    assert predicted(found, (B, C), (A, A, A), (C, B, C)) == [[0, 1], [0, 0, 0], [1, 0, 1]]


def test_a_latent_of_two_tokens_with_any_between():
    found = explained(lambda text: text[-1] == C and A in text[:-1], (A, B, C), (B, A, C), (A, C))
    assert [one.tokens for one in found] == [(A, None, C), (A, C), (A, C)]
    texts = (B, C), (A, C), (A, E, C, A, C), (A, B, B, C)
    # The last: an n-gram has as many tokens as its example, so a longer gap is not known.
    assert predicted(found, *texts) == [[0, 0], [0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0]]


def test_no_example_predicts_nothing():
    assert ngrams([], by_rule(lambda text: 0), PAD, 5) == []
    assert predicted([], (B, C), (A, E, C, A, C)) == [[0, 0], [0] * 5]


def test_the_suffix_keeps_half_of_the_activation_and_not_less():
    share = {1: 0.49, 2: 0.5, 3: 1.0}
    found = ngrams(
        [Example(0, (A, B, C), 10.0)], by_rule(lambda text: 10 * share[min(len(text), 3)]), PAD, 3
    )
    assert found == [Ngram((None, None), False, 5.0)]


def test_a_token_matters_from_half_of_what_remains():
    def measure(left):
        return by_rule(lambda text: 8 * (left if PAD in text else 1))

    (kept,) = ngrams([Example(0, (A,), 8.0)], measure(0.5), PAD, 1)
    (free,) = ngrams([Example(0, (A,), 8.0)], measure(0.51), PAD, 1)
    assert (kept.tokens, free.tokens) == ((A,), (None,))
    assert not kept.at_start  # exactly half is active still


def test_a_suffix_that_is_too_long_gives_none():
    needs_all = explained(lambda text: len(text) >= 4, (A, B, C, D), (A, B), longest=3)
    assert needs_all == [None, None]
    assert explained(lambda text: len(text) >= 4, (A, B, C, D), longest=4)[0] is not None


def test_latents_are_measured_together_and_the_same_question_once():
    calls = []

    def measure(texts, latents):
        calls.append((texts.copy(), latents.copy()))
        return (texts[:, -1] == latents).astype(float)

    examples = [Example(C, (A, C), 1.0), Example(C, (B, C), 1.0), Example(D, (A, D), 1.0)]
    assert [one.tokens for one in ngrams(examples, measure, PAD, 2)] == [(C,), (C,), (D,)]
    assert [texts.shape for texts, _ in calls] == [(2, 1), (2, 2), (2, 1)]
    assert calls[0][1].tolist() == [C, D]


def plain_prediction(found, text):
    """The prediction by the rules, token by token: own branch first, the first complete counts."""
    values = []
    for end in range(len(text)):
        paths = [(tuple(reversed(one.tokens)), one) for one in found]
        value, depth = 0.0, 0
        while True:
            complete = [one for path, one in paths if len(path) == depth]
            anywhere = [one for one in complete if not one.at_start]
            if anywhere:
                value = anywhere[-1].activation
                break
            if end - depth < 0:
                value = complete[-1].activation if complete else 0.0
                break
            longer = [(path, one) for path, one in paths if len(path) > depth]
            own = [(path, one) for path, one in longer if path[depth] == text[end - depth]]
            paths = own or [(path, one) for path, one in longer if path[depth] is None]
            if not paths:
                break
            depth += 1
        values.append(value)
    return values


@pytest.mark.parametrize("seed", range(5))
def test_prediction_follows_the_rules(seed):
    random = np.random.default_rng(seed)
    found = [
        Ngram(
            tuple(None if token == 3 else int(token) for token in random.integers(0, 4, length)),
            bool(random.random() < 0.3),
            float(value),
        )
        for value, length in enumerate(random.integers(1, 5, 12), start=1)
    ]
    texts = random.integers(0, 4, (30, 9))
    expected = [plain_prediction(found, text) for text in texts.tolist()]
    predicted = Trie.of(found).predict(texts)
    assert (predicted > 0).any()
    np.testing.assert_array_equal(predicted, expected)


def test_the_first_complete_ngram_counts_and_own_branches_go_before_wildcards():
    extended = [Ngram((C,), False, 1.0), Ngram((A, C), False, 2.0)]
    assert predicted(extended, (A, C)) == [[0, 1]]
    branches = [Ngram((A, None, C), False, 1.0), Ngram((D, B, C), False, 2.0)]
    assert predicted(branches, (A, E, C), (D, B, C), (A, B, C)) == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert predicted([Ngram((A, C), True, 3.0)], (A, C, A, C)) == [[0, 3, 0, 0]]


def test_any_integers_are_tokens():
    trie = Trie.of([Ngram((A, C), False, 1.0)])
    texts = np.array([[A, C, C], [C, A, C]])
    np.testing.assert_array_equal(trie.predict(texts.astype(np.uint16)), trie.predict(texts))
