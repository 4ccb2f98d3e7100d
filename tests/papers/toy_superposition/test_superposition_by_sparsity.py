import numpy as np
import pytest
import torch
from pydantic import ValidationError

from papers.toy_superposition.models import Architecture
from papers.toy_superposition.superposition_by_sparsity import (
    DENSITIES,
    EXPERIMENT,
    SIZES,
    Parameters,
    Training,
    antipodal_share,
    best_models,
)
from shared.experiment import Run

TRAINING = {"recipe": {"steps": 2}, "restarts": 2, "batch": 32, "evaluation_batches": 1}
CONFIG = Parameters(n20=TRAINING, n80=TRAINING)


def orthogonal(size, count=None):
    """The first features along the axes, the others absent."""
    W = np.zeros((size.m, size.n))
    count = count or size.m
    W[np.arange(count), np.arange(count)] = 1
    return W


def arrays_of(build):
    arrays = {}
    for name, size in SIZES.items():
        W = np.stack([orthogonal(size)] + [build(size, k) for k in range(len(DENSITIES))])
        arrays[f"{name}_W"] = W
        arrays[f"{name}_b"] = np.where((W**2).sum(1) > 0, 0, 0.5)
        arrays[f"{name}_loss"] = np.ones(len(W))
    return arrays


def with_pairs(size, pairs):
    """Orthogonal features, of which the last `pairs` axes also hold an opposite feature each."""
    W = orthogonal(size)
    for k in range(pairs):
        W[size.m - 1 - k, size.m + k] = -1
    return W


def test_orthogonal_models_represent_m_features_in_the_dark():
    metrics = EXPERIMENT.evaluate(CONFIG, arrays_of(lambda size, _: orthogonal(size))).metrics
    for name, size in SIZES.items():
        assert list(metrics[name]["represented"]) == [size.m] * 7
        assert list(metrics[name]["orthogonal"]) == [size.m] * 7
        assert metrics[name]["linear_represented"] == size.m
        assert metrics[name]["linear_longest_dropped"] == 0
        assert list(metrics[name]["dense_bias_of_dropped"]) == [0.5] * (size.n - size.m)
        assert metrics[name]["dense_bias_of_kept"] == 0
        assert np.isnan(metrics[name]["early_antipodal_share"]).all()


def test_pairs_are_counted_and_found_antipodal():
    metrics = EXPERIMENT.evaluate(CONFIG, arrays_of(lambda size, k: with_pairs(size, min(k, 4))))
    small = metrics.metrics["n20"]
    assert list(small["represented"]) == [5, 6, 7, 8, 9, 9, 9]
    assert list(small["orthogonal"]) == [5, 4, 3, 2, 1, 1, 1]
    assert list(small["early_antipodal_share"]) == [1, 1]
    assert small["early_rank_of_orthogonal"] == 1.5
    assert small["early_rank_of_superposed"] == 4.5
    assert list(small["positive_interference_sparse"]) == [0, 0, 0]


def test_a_triangle_or_a_leaning_neighbour_is_not_a_strict_pair():
    angle = 2 * np.pi * np.arange(3) / 3
    triangle = np.stack([np.cos(angle), np.sin(angle)])
    pair = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    leaning = np.array([[1.0, -1.0, 0.2], [0.0, 0.0, 1.0]])
    faint = np.array([[1.0, -1.0, 0.2], [0.0, 0.0, 0.2]])  # the third is not represented
    short = np.array([[1.0, -0.8, 0.0], [0.0, 0.0, 1.0]])  # a partner that is not represented
    models = np.stack([triangle, pair, leaning, faint, short])
    assert list(antipodal_share(models, represented=0.9)) == [0, 1, 0, 1, 1]


def test_the_interference_of_aligned_features_is_positive():
    def aligned(size, k):
        W = orthogonal(size)
        W[0, size.m] = 0.4 if k >= 4 else -0.4
        return W

    small = EXPERIMENT.evaluate(CONFIG, arrays_of(aligned)).metrics["n20"]
    assert list(small["positive_interference_moderate"]) == [0, 0, 0]
    np.testing.assert_allclose(small["positive_interference_sparse"], 0.4)


def test_the_best_of_all_restarts_is_kept_and_is_the_same_again():
    training = Training(**TRAINING)
    run = Run(seed=3, device="cpu")
    models, losses = best_models(Architecture(), SIZES["n20"], (1.0, 0.1), training, run, "x")
    assert models.W.shape == (2, 5, 20)
    assert bool(losses.isfinite().all())
    again, _ = best_models(Architecture(), SIZES["n20"], (1.0, 0.1), training, run, "x")
    assert torch.equal(models.W, again.W)


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ValidationError, match="restart"):
        Training(**TRAINING, restart=3)
