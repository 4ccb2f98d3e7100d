import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from shared.saes.geometric_median import geometric_median


def total_distance(y, points):
    return np.linalg.norm(points - y, axis=1).sum()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_where_a_general_optimiser_ends(seed):
    points = np.random.default_rng(seed).exponential(size=(60, 4)) ** 2
    found = geometric_median(torch.tensor(points)).numpy()
    best = minimize(total_distance, points.mean(0), (points,), tol=1e-12).x
    np.testing.assert_allclose(found, best, atol=1e-5)


def test_it_is_the_best_point_of_a_fine_grid():
    points = np.random.default_rng(0).normal(size=(7, 2))
    axis = np.linspace(-3, 3, 301)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    costs = [total_distance(y, points) for y in grid]
    found = geometric_median(torch.tensor(points)).numpy()
    assert total_distance(found, points) <= min(costs)
    assert np.abs(found - grid[np.argmin(costs)]).max() < 0.03


def test_it_is_the_median_on_a_line():
    points = torch.tensor([[0.0], [1.0], [2.0], [50.0], [100.0]])
    assert float(geometric_median(points)) == pytest.approx(2, abs=1e-4)


def test_a_point_that_holds_the_estimate_is_left_again():
    """The mean, where the iteration starts, is one of the points and not the median."""
    points = torch.tensor([[0.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [-1.0, 0.0], [3.0, 0.0]])
    assert torch.equal(points.mean(0), points[0])
    found = geometric_median(points)
    best = minimize(total_distance, [-0.5, 0.0], (points.double().numpy(),), method="Nelder-Mead").x
    np.testing.assert_allclose(found.numpy(), best, atol=1e-3)


def test_a_majority_at_one_point_is_the_median():
    points = torch.cat([torch.zeros(6, 3), torch.rand(5, 3)])
    assert geometric_median(points).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 4])
def test_equal_points(count):
    assert torch.equal(geometric_median(torch.full((count, 2), 0.1)), torch.full((2,), 0.1))
