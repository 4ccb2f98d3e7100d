import numpy as np
import pytest
import torch

from papers.toy_superposition.closed_forms import linear_optimum, one_hot_solution, variance
from papers.toy_superposition.linear_models import (
    CASES,
    DENSITIES,
    EXPERIMENT,
    SIZE,
    OneHot,
    Parameters,
    _loss_by_count,
)
from papers.toy_superposition.models import Architecture, ToyModels
from papers.toy_superposition.superposition_by_sparsity import Training

CONFIG = Parameters(
    linear=Training(recipe={"steps": 2}, restarts=1, batch=32, evaluation_batches=1),
    contrast={"steps": 2},
    contrast_restarts=1,
    per_support=1,
    shuffles=1,
    direct_batches=1,
)
IMPORTANCE = SIZE.decay ** np.arange(SIZE.n)


def arrays():
    """Optimal linear models; ReLU models that hold one more feature, opposite to the last."""
    top = np.eye(SIZE.m, SIZE.n)
    density = np.array(DENSITIES)
    mean = np.where(np.arange(SIZE.n) < SIZE.m, 0, density[:, None] / 2)
    paired = top.copy()
    paired[SIZE.m - 1, SIZE.m] = -1
    polygon, polygon_bias = one_hot_solution(5)
    pairs = np.eye(2, 5)
    contrast = [pairs, polygon, pairs, polygon, polygon]
    biases = [np.zeros(5)] * 4 + [polygon_bias]
    loss = variance(density) * linear_optimum(IMPORTANCE, SIZE.m)
    relu_W = np.stack([paired] * len(density))
    relu = ToyModels(
        Architecture(),
        torch.tensor(relu_W).float(),
        torch.zeros(len(density), SIZE.n),
        SIZE.importance.expand(len(density), -1),
    )
    by_count = _loss_by_count(relu, 50, torch.Generator().manual_seed(0)).numpy()
    return {
        "linear_W": np.stack([top] * len(density)),
        "linear_b": mean,
        "linear_loss": loss,
        "relu_W": relu_W,
        "relu_b": np.zeros((len(density), SIZE.n)),
        "relu_loss": loss / 2,
        "relu_loss_by_count": by_count,
        "contrast_W": np.stack(contrast),
        "contrast_b": np.stack(biases),
        "contrast_loss": np.ones(len(CASES)),
    }


def test_the_optimal_linear_model_is_recognised():
    linear = EXPERIMENT.evaluate(CONFIG, arrays()).metrics["linear"]
    assert list(linear["represented"]) == [SIZE.m] * len(DENSITIES)
    np.testing.assert_allclose(linear["loss_over_optimum"], 1)
    np.testing.assert_allclose(linear["sampled_loss_over_closed_form"], 1)
    np.testing.assert_allclose(linear["bias_of_dropped_over_mean"], 1)
    np.testing.assert_allclose(linear["dimensions_used"], SIZE.m)
    np.testing.assert_allclose(linear["relu_loss_over_linear_optimum"], 0.5)
    assert list(linear["relu_represented"]) == [SIZE.m + 1] * len(DENSITIES)


def test_a_wrong_bias_and_a_wrong_weight_cost_a_linear_model():
    worse = arrays()
    worse["linear_b"] = worse["linear_b"] + 0.1
    worse["linear_W"] = worse["linear_W"] * 0.9
    ratio = EXPERIMENT.evaluate(CONFIG, worse).metrics["linear"]["loss_over_optimum"]
    assert np.min(ratio) > 1.02


def test_an_antipodal_pair_does_not_interfere_behind_the_relu():
    by_active = EXPERIMENT.evaluate(CONFIG, arrays()).metrics["by_active"]
    without = (0.7**4 + 0.7**5) / 3
    np.testing.assert_allclose(by_active["interference_without_relu"], without)
    assert by_active["pairs_interference_left"] == 0
    assert by_active["empty_error"] == 0
    np.testing.assert_allclose(by_active["one_sparse_sampled_over_closed_form"], 1, atol=0.2)


def test_contrast_metrics():
    contrast = EXPERIMENT.evaluate(CONFIG, arrays()).metrics["contrast"]
    assert list(contrast["represented"]) == [2, 5, 2, 5, 5]
    assert contrast["linear_one_hot_loss_over_optimum"] == pytest.approx(1)
    assert contrast["relu_one_hot_loss"] == pytest.approx(0, abs=1e-24)


def test_loss_by_count_of_a_model_that_outputs_zero():
    n, importance = 4, torch.tensor([1.0, 0.5, 0.25, 0.125])
    zero = ToyModels(
        Architecture(), torch.zeros(1, 2, n), torch.zeros(1, n), importance.expand(1, n)
    )
    losses = _loss_by_count(zero, 2_000, torch.Generator().manual_seed(0))[:, 0]
    # Given k of n active, each is active with k/n and then has the second moment 1/3.
    expected = torch.arange(n + 1) / n * importance.sum() / 3
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=1e-7)


def test_one_hot_inputs():
    batch = OneHot(3).sample(torch.Generator())
    assert torch.equal(batch.x[0], torch.eye(3))
    torch.testing.assert_close(batch.weight.sum(), torch.tensor(1.0))
