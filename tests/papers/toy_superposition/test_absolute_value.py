import numpy as np
import pytest

from papers.toy_superposition.absolute_value import (
    in_reading_order,
    motifs,
    outputs,
    rescaled,
    strength,
    whole_pairs,
)


def signed_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Return n = 3, m = 6: neurons 2i and 2i + 1 see +x_i and -x_i."""
    W_in = np.zeros((6, 3))
    W_in[[0, 2, 4], [0, 1, 2]] = 2
    W_in[[1, 3, 5], [0, 1, 2]] = -0.5
    return W_in, np.where(W_in > 0, 0.5, 2.0 * (W_in < 0)).T


def asymmetric() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the paper's example: [2, -1/2] in, [1/2, 2] out, and an inhibiting neuron."""
    W_in = np.array([[2, -0.5], [1, 0]])
    W_out = np.array([[0.5, 0.0], [2, -4]])
    return W_in, W_out, np.zeros(2)


def test_signed_pairs_compute_the_absolute_value():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 50))
    np.testing.assert_allclose(outputs(*signed_pairs(), np.zeros(3), x), np.abs(x))
    assert whole_pairs(*signed_pairs()) == 3


def test_a_feature_with_two_neurons_of_one_sign_is_not_whole():
    W_in, W_out = signed_pairs()
    W_in[1] *= -1
    assert whole_pairs(W_in, W_out) == 2


def test_rescaling_changes_nothing_but_the_largest_weight():
    rng = np.random.default_rng(1)
    W_in, W_out, b = rng.normal(size=(4, 3)), rng.normal(size=(3, 4)), rng.normal(size=3)
    x = rng.uniform(-1, 1, (3, 20))
    scaled = rescaled(W_in, W_out)
    np.testing.assert_allclose(np.abs(scaled[0]).max(1), 1)
    np.testing.assert_allclose(outputs(*scaled, b, x), outputs(W_in, W_out, b, x))


def test_a_neuron_without_output_carries_nothing():
    W_in, W_out = signed_pairs()
    W_out[:, 0] = 0
    assert strength(W_in, W_out)[0].max() == 0


def test_the_papers_motif_is_found_with_its_inhibitor():
    (motif,) = motifs(*asymmetric())
    assert (motif.neuron, motif.large, motif.small) == (0, 0, 1)
    assert motif.inhibitor == 1
    assert motif.interference == pytest.approx(4)
    assert motif.inhibited


def test_without_the_second_neuron_the_motif_is_not_inhibited():
    W_in, W_out, b = asymmetric()
    (motif,) = motifs(W_in[:1], W_out[:, :1], b)
    assert not motif.inhibited


@pytest.mark.parametrize(("inside", "outside"), [([1, -1], [1, 1]), ([2, -0.5], [0.5, 0.4])])
def test_even_weights_and_unequal_products_are_no_motif(inside, outside):
    W_in, W_out = np.array([inside], dtype=float), np.array([outside], dtype=float).T
    assert motifs(W_in, W_out, np.zeros(2)) == []


def test_reading_order_is_by_number_of_features_then_by_feature():
    W_in = np.array([[0, 1.0], [1, 0.5], [1.0, 0]])
    assert in_reading_order(W_in, np.array([1, 2, 1])).tolist() == [2, 0, 1]
