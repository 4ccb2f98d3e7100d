import numpy as np
import pytest
import torch

from shared.metrics.sparsity import Firings, Sparsity

FEATURES = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])


def firings(*batches):
    counter = Sparsity(4)
    for batch in batches:
        counter.update(batch)
    return counter.result()


def test_l0_is_the_mean_number_of_active_features():
    assert firings(FEATURES).l0 == pytest.approx(4 / 3)


def test_the_l1_norm_is_the_mean_sum_of_activations():
    assert firings(FEATURES).l1_norm == pytest.approx(6.5 / 3)


def test_density_is_a_share_of_vectors():
    np.testing.assert_allclose(firings(FEATURES).density, [0, 1, 1 / 3, 0])


def test_dead_features_are_those_never_active():
    assert firings(FEATURES).dead == 0.5


def test_ultralow_features_are_active_but_rarely():
    found = Firings(np.array([0, 1, 9, 10, 500]), np.zeros(5), vectors=1000)
    assert found.ultralow(below=0.01) == pytest.approx(2 / 5)
    assert found.dead == pytest.approx(1 / 5)
    assert Firings(np.array([1, 2]), np.zeros(2), vectors=1000).ultralow() == 0


def test_batches_count_as_everything_at_once():
    torch.manual_seed(0)
    features = torch.randn(50, 4).relu()
    whole, parts = firings(features), firings(*features.split(7))
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_allclose(whole.sums, parts.sums)
    assert whole.vectors == parts.vectors == 50


def test_a_result_is_not_changed_by_later_batches():
    counter = Sparsity(4)
    counter.update(FEATURES)
    before = counter.result()
    counter.update(FEATURES)
    assert before.counts.sum() == 4
