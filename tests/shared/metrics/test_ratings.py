import numpy as np
import pytest
from scipy import stats

from shared.metrics.ratings import (
    friedman,
    kruskal_wallis,
    mann_whitney,
    mean_interval,
    wilcoxon_pratt,
)


def random(seed=0):
    return np.random.default_rng(seed)


def test_wilcoxon_ranks_with_the_zeros_and_then_leaves_them_out():
    """The test by hand: |d| = 0 0 1 2 2 3 has ranks 1.5 1.5 3 4.5 4.5 6."""
    differences = np.array([0, 0, 1, -2, 2, 3])
    ranks, kept = np.array([3, 4.5, 4.5, 6]), np.array([1, -1, 1, 1])
    z = (ranks * kept).sum() / np.sqrt((ranks**2).sum())
    assert wilcoxon_pratt(differences) == pytest.approx(stats.norm.sf(z))


def test_wilcoxon_is_one_sided():
    differences = random().integers(-1, 3, 60)
    up, down = wilcoxon_pratt(differences), wilcoxon_pratt(-differences)
    assert up < 0.01
    assert up + down == pytest.approx(1)


def test_wilcoxon_keeps_its_level_by_the_exact_count_of_signs():
    """All 2¹² assignments of signs: at most about the nominal share is called significant."""
    sizes = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    signs = 2 * ((np.arange(2**14)[:, None] >> np.arange(14)) & 1) - 1
    assert (wilcoxon_pratt(sizes * signs) <= 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_many_studies_at_once_are_as_one_by_one():
    labels = random().integers(-2, 3, (5, 40))
    together = wilcoxon_pratt(labels)
    assert together == pytest.approx([float(wilcoxon_pratt(study)) for study in labels])
    found = mean_interval(labels, 3)
    one = mean_interval(labels[2], 3)
    assert found.low[2] == pytest.approx(float(one.low))
    assert found.high[2] == pytest.approx(float(one.high))
    groups = random(1).integers(0, 3, (3, 5, 12))
    for test in (kruskal_wallis, friedman):
        each = [float(test(*(group[study] for group in groups))) for study in range(5)]
        assert test(*groups) == pytest.approx(each)


def test_the_interval_of_much_data_is_the_normal_one():
    values = random().normal(0.3, 1, 1000)
    found = mean_interval(values, 0)
    half = 1.645 / np.sqrt(1000) * values.std()
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_of_skewed_data_leans_the_way_of_the_skew():
    values = random().exponential(1, 30)
    found = mean_interval(values, 0)
    assert found.high - found.mean > found.mean - found.low
    assert found.holds(1.0)
    assert not found.holds(30.0)


def test_a_wider_confidence_gives_a_wider_interval():
    values = random().integers(-2, 3, 75)
    narrow, wide = (mean_interval(values, 0, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_same_seed_gives_the_same_interval():
    values = random().integers(-2, 3, 75)
    assert mean_interval(values, 4).low == mean_interval(values, 4).low


def test_groups_that_differ_are_told_apart():
    low, middle, high = (random(k).normal(k, 1, 40) for k in range(3))
    assert mann_whitney(low, high) < 1e-6
    assert kruskal_wallis(low, middle, high) < 1e-6
    assert friedman(low, middle, high) < 1e-6
    same = [random(seed).normal(0, 1, 40) for seed in range(3)]
    assert mann_whitney(*same[:2]) > 0.05
    assert kruskal_wallis(*same) > 0.05
    assert friedman(*same) > 0.05


def test_friedman_sees_through_differences_of_blocks():
    block = 10 * random(0).normal(0, 1, 60)
    treatments = [block + random(k + 1).normal(0.7 * k, 1, 60) for k in range(3)]
    assert friedman(*treatments) < 0.01 < kruskal_wallis(*treatments)


def test_data_that_do_not_vary_are_no_evidence():
    zeros = np.zeros((2, 10))
    np.testing.assert_array_equal(wilcoxon_pratt(zeros), 1)
    np.testing.assert_array_equal(kruskal_wallis(zeros, zeros, zeros), 1)
    np.testing.assert_array_equal(friedman(zeros, zeros, zeros), 1)
    assert mann_whitney(zeros[0], zeros[0]) == 1
    found = mean_interval(zeros + 2, 0)
    np.testing.assert_array_equal([found.low, found.mean, found.high], 2)


def test_a_study_that_does_not_vary_leaves_the_others_alone():
    labels = np.stack([np.ones(20), random().integers(-2, 3, 20)])
    found = mean_interval(labels, 0)
    assert found.low[0] == found.high[0] == 1
    assert found.low[1] < found.mean[1] < found.high[1]


def test_a_single_value_has_no_interval():
    found = mean_interval(np.array([0.5]), 0)
    assert found.mean == 0.5
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert wilcoxon_pratt(np.array([0.5])) > 0.05
