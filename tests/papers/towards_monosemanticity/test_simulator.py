import numpy as np
import pytest
from pydantic import ValidationError

from papers.towards_monosemanticity.simulator import (
    TRAITS,
    Settings,
    describe,
    fit,
    telling,
    token_traits,
)

VOCABULARY = [
    b"", b" the", b"ACGT", b"\xd8\xa7", b"42", b" Word", b"zf9", b"(", b".", b"foo", b"\n", b"def",
]  # fmt: skip
VOCABULARY_TRAITS = token_traits(VOCABULARY)
SETTINGS = Settings()
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def traits_of(token):
    row = VOCABULARY_TRAITS[VOCABULARY.index(token)]
    return {name for name, has in zip(TRAITS, row, strict=True) if has}


def test_traits_tell_kinds_of_token_apart():
    assert traits_of(b" the") == {"begins with a space", "lower-case word"}
    assert traits_of(b"ACGT") == {"capitals", "DNA", "base64"}
    assert traits_of(b"\xd8\xa7") == {"Arabic"}
    assert {"digits", "hexadecimal"} <= traits_of(b"42")
    assert "line break" in traits_of(b"\n")
    assert "end of text" not in traits_of(b"\n")
    assert traits_of(b"") == {"end of text"}


def learn_and_score(rule, random, examples=49):
    """Fit on windows of random tokens where `rule` sets the level; return R² on other windows."""

    def windows(count):
        tokens = random.integers(0, len(VOCABULARY), (count, 9))
        return tokens, rule(tokens)

    model = fit(*windows(examples), VOCABULARY_TRAITS, SETTINGS)
    tokens, levels = windows(60)
    predicted = model.predict(tokens, VOCABULARY_TRAITS)
    assert predicted.shape == tokens.shape
    assert predicted.min() >= 0
    assert predicted.max() <= 9
    return 1 - ((levels - predicted) ** 2).mean() / levels.var()


def test_it_learns_a_token(random):
    assert learn_and_score(lambda tokens: 9 * (tokens == 9), random) > 0.99


def test_it_learns_a_trait(random):
    arabic_or_digits = [VOCABULARY.index(b"\xd8\xa7"), VOCABULARY.index(b"42")]
    assert learn_and_score(lambda tokens: 6 * np.isin(tokens, arabic_or_digits), random) > 0.99


def test_it_learns_a_bigram(random):
    def rule(tokens):
        after = np.zeros_like(tokens)
        after[:, 1:] = 8 * (tokens[:, :-1] == 1)
        return after

    assert learn_and_score(rule, random) > 0.9


def test_it_learns_a_token_in_context(random):
    def rule(tokens):
        seen = np.logical_or.accumulate(tokens == 7, axis=1)
        return 9 * seen

    assert learn_and_score(rule, random) > 0.9


def test_noise_is_not_predicted(random):
    assert learn_and_score(lambda tokens: random.integers(0, 10, tokens.shape), random) < 0.1


def test_a_unit_that_never_fires_is_predicted_constant(random):
    tokens = random.integers(0, len(VOCABULARY), (49, 9))
    model = fit(tokens, np.zeros((49, 9), dtype=np.int64), VOCABULARY_TRAITS, SETTINGS)
    assert (model.predict(tokens, VOCABULARY_TRAITS) == 0).all()


def test_the_same_windows_give_the_same_simulator(random):
    tokens = random.integers(0, len(VOCABULARY), (49, 9))
    levels = random.integers(0, 10, (49, 9))
    first, second = (fit(tokens, levels, VOCABULARY_TRAITS, SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(
        first.predict(tokens, VOCABULARY_TRAITS), second.predict(tokens, VOCABULARY_TRAITS)
    )


def test_it_sees_nothing_outside_the_window(random):
    """The description of one window does not depend on the others beside it."""
    tokens = random.integers(0, len(VOCABULARY), (5, 9))
    known = np.arange(4)
    together = describe(tokens, VOCABULARY_TRAITS, known, known, known).reshape(5, 9, -1)
    alone = describe(tokens[2:3], VOCABULARY_TRAITS, known, known, known).reshape(9, -1)
    np.testing.assert_array_equal(together[2], alone)


def test_the_first_token_of_a_window_has_none_before_it():
    tokens = np.array([[1, 1, 2]])
    seen = describe(tokens, VOCABULARY_TRAITS, NONE, np.array([1]), np.array([1]))
    np.testing.assert_array_equal(seen[:, -2], [0, 1, 1])  # just before
    np.testing.assert_array_equal(seen[:, -1], [0, 1, 1])  # anywhere before


def test_telling_tokens_are_those_that_move_the_level():
    seen = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=bool)
    assert telling(seen, np.array([9.0, 9.0, 9.0, 0.0]), 1).tolist() in ([0], [1])
    assert telling(seen, np.array([9.0, 0.0, 9.0, 0.0]), 1).tolist() == [2]


def test_a_tree_without_depth_is_refused():
    with pytest.raises(ValidationError, match="depth"):
        Settings(depth=0)
