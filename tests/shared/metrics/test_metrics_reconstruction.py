import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from shared.metrics.reconstruction import Reconstruction


def measure(x, x_hat, parts=None):
    sums = Reconstruction()
    for part in zip(x.split(parts or len(x)), x_hat.split(parts or len(x)), strict=True):
        sums.update(*part)
    return sums.result()


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(200, 6, dtype=torch.float64) + torch.tensor([5.0, 0, 0, -3, 1, 0])


def test_a_perfect_reconstruction(x):
    found = measure(x, x)
    assert found.mse == found.fvu == 0
    assert found.explained_variance == 1
    assert found.gamma == pytest.approx(1)
    assert found.cosine == pytest.approx(1)


def test_predicting_the_mean_leaves_all_variance_unexplained(x):
    assert measure(x, x.mean(0).expand_as(x)).fvu == pytest.approx(1, abs=1e-12)


def test_predicting_zero_is_worse_than_the_mean_and_has_cosine_zero(x):
    found = measure(x, torch.zeros_like(x))
    expected = x.square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(float(expected))
    assert found.fvu > 1
    assert found.cosine == 0
    assert math.isnan(found.gamma)


def test_mse_is_a_mean_over_elements(x):
    assert measure(x, x + 2).mse == pytest.approx(4)


def test_explained_variance_is_the_variance_weighted_r2(x):
    x_hat = x + 0.3 * torch.randn_like(x)
    oracle = r2_score(x.numpy(), x_hat.numpy(), multioutput="variance_weighted")
    assert measure(x, x_hat).explained_variance == pytest.approx(oracle)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_gamma_is_the_factor_by_which_a_reconstruction_is_too_long(x, scale):
    assert measure(x, scale * x).gamma == pytest.approx(scale)


def test_dividing_by_gamma_gives_the_least_squared_error(x):
    x_hat = 0.8 * x + 0.4 * torch.randn_like(x)
    gamma = measure(x, x_hat).gamma
    errors = [measure(x, x_hat / (gamma * factor)).mse for factor in (0.99, 1.0, 1.01)]
    assert np.argmin(errors) == 1


def test_cosine_is_the_mean_over_vectors(x):
    x_hat = torch.randn_like(x)
    oracle = torch.nn.functional.cosine_similarity(x, x_hat).mean()
    assert measure(x, x_hat).cosine == pytest.approx(float(oracle))


@pytest.mark.parametrize("parts", [1, 7, 199])
def test_batches_give_what_everything_at_once_gives(x, parts):
    x_hat = x + torch.randn_like(x)
    for whole, part in zip(
        vars(measure(x, x_hat)).values(), vars(measure(x, x_hat, parts)).values(), strict=True
    ):
        assert part == pytest.approx(whole, rel=1e-12)


def test_float32_vectors_far_from_zero_keep_their_variance():
    torch.manual_seed(0)
    x = torch.randn(5000, 3) + 1000
    exact = (x.double() - x.double().mean(0)).square().mean()
    found = measure(x, torch.zeros_like(x), parts=100)
    assert found.mse / found.fvu == pytest.approx(float(exact), rel=1e-6)


def test_what_is_not_finite_is_not_hidden(x):
    x_hat = x.clone()
    x_hat[0, 0] = torch.nan
    assert all(math.isnan(value) for value in vars(measure(x, x_hat)).values())
