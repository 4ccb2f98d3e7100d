import numpy as np
import pytest
import torch

from papers.toy_superposition.closed_forms import (
    active_probability,
    empty_loss,
    linear_expected_loss,
    linear_loss,
    linear_optimum,
    one_hot_loss,
    one_hot_solution,
    one_sparse_loss,
    variance,
)
from papers.toy_superposition.inputs import Batch, Supports, independent_supports
from papers.toy_superposition.models import Architecture, ToyModels

N, M = 5, 2
IMPORTANCE = 0.7 ** np.arange(N)
GRID = (np.arange(4000) + 0.5) / 4000


def weights(seed=0, n=N, m=M):
    source = np.random.default_rng(seed)
    return source.normal(size=(3, m, n)) / np.sqrt(m), source.normal(size=(3, n)) / 4


def as_models(W, b, **architecture):
    importance = torch.from_numpy(IMPORTANCE).expand(len(W), -1)
    return ToyModels(Architecture(**architecture), torch.tensor(W), torch.tensor(b), importance)


def test_the_papers_linear_loss_written_out():
    W, _ = weights()
    for model, value in zip(W, linear_loss(W, IMPORTANCE), strict=True):
        by_hand = 0.0
        for i in range(N):
            by_hand += IMPORTANCE[i] * (1 - model[:, i] @ model[:, i]) ** 2
            for j in range(N):
                if i != j:
                    by_hand += IMPORTANCE[j] * (model[:, i] @ model[:, j]) ** 2
        assert value == pytest.approx(by_hand)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.01])
def test_expected_loss_of_a_linear_model_equals_integration(density):
    W, b = weights()
    exact = linear_expected_loss(W, b, IMPORTANCE, np.full(3, density))
    # The integrand is quadratic, so two Gauss points per active feature are exact.
    points = (1 + np.array([-1, 1]) / np.sqrt(3)) / 2
    values = np.stack(np.meshgrid(*[np.array([0, *points])] * N, indexing="ij")).reshape(N, -1)
    weight = np.where(values > 0, density / 2, 1 - density).prod(0)
    batch = Batch(torch.tensor(values)[None], torch.tensor(weight)[None])
    summed = as_models(W, b, output_relu=False).losses(batch)
    np.testing.assert_allclose(exact, summed, rtol=1e-10)


def test_with_the_best_bias_only_the_papers_formula_is_left():
    W, _ = weights()
    for density in (1.0, 0.1):
        best_bias = (np.eye(N) - W.swapaxes(1, 2) @ W).sum(2) * density / 2
        loss = linear_expected_loss(W, best_bias, IMPORTANCE, np.full(3, density))
        expected = variance(np.array(density)) * linear_loss(W, IMPORTANCE)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_on_one_hot_inputs_the_bias_free_linear_loss_is_the_formula_over_n():
    W, b = weights()
    loss = one_hot_loss(W, 0 * b, IMPORTANCE, output_relu=False)
    np.testing.assert_allclose(loss, linear_loss(W, IMPORTANCE) / N, rtol=1e-12)


@pytest.mark.parametrize("output_relu", [False, True])
def test_one_hot_loss_equals_the_models(output_relu):
    W, b = weights()
    batch = Batch(torch.eye(N).double()[None], torch.full((1, N), 1 / N, dtype=torch.double))
    models = as_models(W, b, output_relu=output_relu).losses(batch)
    np.testing.assert_allclose(one_hot_loss(W, b, IMPORTANCE, output_relu), models, rtol=1e-10)


def test_no_linear_model_beats_the_optimum_which_the_top_features_reach():
    top = np.eye(M, N)
    assert linear_loss(top, IMPORTANCE) == pytest.approx(linear_optimum(IMPORTANCE, M))
    W = (
        np.random.default_rng(1).normal(size=(2000, M, N))
        * np.linspace(0.1, 1, 2000)[:, None, None]
    )
    nearby = top + 0.05 * W
    for candidates in (W, nearby):
        assert linear_loss(candidates, IMPORTANCE).min() >= linear_optimum(IMPORTANCE, M) - 1e-12
    assert linear_optimum(IMPORTANCE, N) == 0


@pytest.mark.parametrize("n", [3, 5, 12])
def test_a_polygon_represents_any_number_of_one_hot_features_without_loss(n):
    W, b = one_hot_solution(n)
    assert one_hot_loss(W, b, np.ones(n), output_relu=True) == pytest.approx(0, abs=1e-24)
    assert one_hot_loss(W, 0 * b, np.ones(n), output_relu=False) >= (n - 2) / n


@pytest.mark.parametrize("kind", ["random", "negative bias", "no interference", "dead"])
def test_one_sparse_loss_equals_integration(kind):
    W, b = weights(3)
    if kind == "negative bias":
        b = -np.abs(b)
    elif kind == "no interference":
        W = np.broadcast_to(np.eye(M, N), W.shape)
    elif kind == "dead":
        b = b - 10
    benefit, interference = one_sparse_loss(W, b, IMPORTANCE)
    own, others = 0.0, 0.0
    for i in range(N):
        slope = np.einsum("amj,am->aj", W, W[:, :, i])
        output = np.maximum(slope[:, :, None] * GRID + b[:, :, None], 0)
        own += IMPORTANCE[i] * ((GRID - output[:, i]) ** 2).mean(1)
        squares = (output**2).mean(2) * IMPORTANCE
        others += squares.sum(1) - squares[:, i]
    np.testing.assert_allclose(benefit, own, rtol=1e-5)
    np.testing.assert_allclose(interference, others, rtol=1e-5, atol=1e-12)


def test_negative_interference_is_free_and_positive_is_not():
    none = np.zeros(2)
    opposite, aligned = np.array([[1.0, -1.0]]), np.array([[1.0, 1.0]])
    assert one_sparse_loss(opposite, none, np.ones(2)) == (0, 0)
    assert one_sparse_loss(aligned, none, np.ones(2)).interference == pytest.approx(2 / 3)
    assert linear_loss(opposite, np.ones(2)) == linear_loss(aligned, np.ones(2)) == 2


def test_the_terms_by_active_features_add_up_to_the_loss():
    n = 2
    W, b = weights(5, n=n, m=1)
    importance = np.array([1.0, 0.5])
    density = np.array([0.3])
    supports, probability = independent_supports(torch.full((1, n), 0.3))
    batch = Supports(supports, probability, 40_000).sample(torch.Generator().manual_seed(0))
    models = ToyModels(
        Architecture(),
        torch.tensor(W).float(),
        torch.tensor(b).float(),
        torch.tensor(importance).float().expand(3, -1),
    )
    both = Batch(batch.x[:, :, -40_000:], torch.full((1, 40_000), 1 / 40_000))
    given_count = [empty_loss(b, importance), sum(one_sparse_loss(W, b, importance)) / n]
    given_count.append(models.losses(both).numpy())
    total = active_probability(n, density)[0] @ np.stack(given_count)
    np.testing.assert_allclose(total, models.losses(batch).numpy(), rtol=1e-3)


def test_probabilities_of_the_number_of_active_features():
    share = active_probability(20, np.array([1.0, 0.3, 1e-3]))
    np.testing.assert_allclose(share.sum(1), 1)
    np.testing.assert_allclose(share @ np.arange(21), [20, 6, 0.02])
    assert share[0, 20] == 1
