import numpy as np
import pytest
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity.examples import (
    ELSEWHERE,
    EXPLAIN,
    INTERVAL,
    INTERVALS,
    PREDICT,
    RANDOM,
    TOP,
    Text,
    Unit,
    activations,
    draw,
    interval_of,
    live,
    quantise,
    strongest,
    unit,
    windows,
)

LENGTH, CONTEXTS = 32, 60


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def text(random):
    return Text(random.integers(1, 20, CONTEXTS * LENGTH).astype(np.uint16), LENGTH)


@pytest.fixture
def fired(random):
    rows = np.sort(random.choice(CONTEXTS * LENGTH, 900, replace=False))
    return Unit(rows, random.uniform(0.01, 6, 900).astype(np.float32))


def test_the_paper_has_49_and_60_examples():
    assert EXPLAIN.total == 49
    assert PREDICT.total == 60
    assert PREDICT.total * windows(np.array([10])).size == 540


def test_a_unit_is_a_column_in_the_order_of_the_text():
    dense = np.array([[0, 1.5], [2.0, 0], [0, 0], [0, 0.5]], dtype=np.float32)
    fired = unit(csc_matrix(dense), 1)
    assert fired.rows.tolist() == [0, 3]
    assert fired.maximum == 1.5
    assert activations(fired, np.array([[0, 1], [2, 3]])).tolist() == [[1.5, 0], [0, 0.5]]
    assert activations(Unit(np.zeros(0, int), np.zeros(0)), np.array([3])).tolist() == [0]


def test_activations_are_quantised_to_ten_levels():
    assert quantise(np.array([0, 0.1, 3.0, 6.0, 9.0]), 6.0).tolist() == [0, 0, 4, 9, 9]
    assert quantise(np.array([0.0, 0.0]), 0.0).tolist() == [0, 0]


def test_intervals_are_of_equal_width_up_to_the_maximum():
    values = np.array([0.01, 0.99, 1.0, 11.9, 12.0])
    assert interval_of(values, 12.0).tolist() == [0, 0, 1, 11, 11]
    assert interval_of(values, 12.0, count=2).tolist() == [0, 0, 0, 1, 1]


def test_windows_stay_inside_their_context(text, random):
    rows = text.random_rows(500, random)
    assert text.has_window(rows).all()
    shown = windows(rows)
    assert (shown // LENGTH == (rows // LENGTH)[:, None]).all()
    assert (shown % LENGTH > 0).all()
    assert not text.has_window(np.array([4, LENGTH - 4, LENGTH + 4])).any()
    assert text.has_window(np.array([5, LENGTH - 5])).all()


def test_occurrences_are_all_places_of_a_token(text):
    everywhere = np.flatnonzero(np.isin(text.tokens, [3, 7]))
    expected = everywhere[text.has_window(everywhere)]
    assert sorted(text.occurrences(np.array([7, 3, 7]))) == expected.tolist()
    assert len(text.occurrences(np.array([500]))) == 0


def test_the_strongest_come_from_different_contexts(text, fired):
    found = strongest(text, fired, 8)
    values = activations(fired, found)
    assert len(np.unique(found // LENGTH)) == 8
    assert (np.diff(values) <= 0).all()
    assert values[0] == fired.maximum
    best = {}
    for row, value in zip(fired.rows // LENGTH, fired.values, strict=True):
        best[row] = max(best.get(row, 0), value)
    np.testing.assert_allclose(values, sorted(best.values(), reverse=True)[:8])


def test_a_set_holds_each_kind_and_no_row_twice(text, fired, random):
    rows, kinds = draw(text, fired, EXPLAIN, random)
    assert np.bincount(kinds).tolist() == [10, 24, 5, 10]
    assert len(np.unique(rows)) == 49
    inside = interval_of(activations(fired, rows[kinds == INTERVAL]), fired.maximum)
    # The top interval's may be among the ten strongest.
    assert (np.bincount(inside, minlength=INTERVALS)[:-1] == 2).all()
    assert (activations(fired, rows[kinds == TOP]) > 0).all()
    tops = text.tokens[rows[kinds == TOP]]
    assert np.isin(text.tokens[rows[kinds == ELSEWHERE]], tops).all()
    assert (kinds == RANDOM).sum() == 5


def test_a_rare_unit_has_fewer_examples_and_the_same_seed_the_same(text):
    fired = Unit(np.array([40, 41, 200]), np.array([1.0, 2.0, 3.0], dtype=np.float32))
    first = draw(text, fired, PREDICT, np.random.default_rng(1))
    again = draw(text, fired, PREDICT, np.random.default_rng(1))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert (first.kinds == TOP).sum() == 2  # of two contexts
    assert (first.kinds == INTERVAL).sum() == 1  # what is left


def test_live_units_fire_often_enough_on_both_splits():
    one = csc_matrix(np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]]))
    other = csc_matrix(np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]]))
    assert live((one, other), 1).tolist() == [0, 1, 2]
    assert live((one, other), 2).tolist() == [0]
