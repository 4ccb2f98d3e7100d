import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from papers.towards_monosemanticity.summaries import (
    alive,
    column,
    descriptions,
    labelled,
    mass,
    most_correlated,
    shares,
    shuffled_contexts,
)
from shared.corpus.documents import LABELS

DENSE = np.array([[0, 2, 0], [1, 0, 0], [3, 1, 0], [0, 0, 0], [0, 5, 0], [4, 0, 0]], dtype="f")
FEATURES = csc_matrix(DENSE)


def test_mass_sums_activation_by_value_and_shares_sum_to_one_or_nothing():
    values = np.array([0, 1, 1, 2, 2, 0], dtype=np.uint16)
    found = mass(FEATURES, values, 4)
    expected = np.stack([DENSE[values == v].sum(0) for v in range(4)], axis=1)
    np.testing.assert_allclose(found.toarray(), expected)
    np.testing.assert_allclose(shares(found).toarray().sum(1), [1, 1, 0])


def test_columns_and_who_is_alive():
    np.testing.assert_array_equal(column(FEATURES, 1), DENSE[:, 1])
    np.testing.assert_array_equal(alive(FEATURES, 3), [True, True, False])


def test_the_feature_of_a_label_is_found():
    labels = np.array([LABELS.index(n) for n in ("text", "dna", "dna", "text", "text", "dna")])
    assert most_correlated(FEATURES, labelled(labels, "dna")) == 0
    assert most_correlated(FEATURES, labelled(labels, "text", "code")) == 1


def test_shuffling_moves_whole_contexts():
    rows = np.arange(60).reshape(10, 6) + 1.0
    moved = shuffled_contexts(csc_matrix(rows.reshape(-1, 1)), 6, np.random.default_rng(0))
    found = moved.toarray().reshape(10, 6)
    assert moved.has_sorted_indices
    assert not np.array_equal(found, rows)
    np.testing.assert_array_equal(found[found[:, 0].argsort()], rows)


def test_a_description_is_the_dominant_label_and_the_top_tokens():
    tokens = csr_matrix([[0, 1.0, 3], [0, 0, 0], [5, 0, 0]])
    by_label = np.zeros((3, len(LABELS)))
    by_label[0, LABELS.index("text")] = by_label[2, LABELS.index("dna")] = 1
    labels = csr_matrix(by_label)
    words = [b"A", b"B", b" c"]
    assert descriptions(tokens, labels, words).tolist() == ["␣c B", "", "dna: A"]
