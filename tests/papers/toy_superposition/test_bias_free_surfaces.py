import numpy as np
import pytest

from papers.toy_superposition import bias_free_surfaces as surfaces

POINTS = [(0.9, 0.3), (0.7, -0.4), (0.4, -1.1), (-0.8, 0.8), (1.0, 0.0), (0.0, 0.7), (0.0, 0.0)]


def brute_force(w1: float, w2: float, p: float, r: float) -> float:
    x = (np.arange(400) + 0.5) / 400
    first, second = (value.ravel() for value in np.meshgrid(x, x))
    zero = np.zeros_like(x)

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        h = w1 * a + w2 * b
        errors = (np.maximum(w1 * h, 0) - a) ** 2 + r * (np.maximum(w2 * h, 0) - b) ** 2
        return float(errors.mean())

    return p * (1 - p) * (loss(x, zero) + loss(zero, x)) + p**2 * loss(first, second)


@pytest.mark.parametrize(("w1", "w2"), POINTS)
def test_closed_form_equals_brute_force(w1, w2):
    for p, r in ((0.2, 1.0), (1.0, 0.3), (0.6, 4.0)):
        exact = float(surfaces.bias_free_loss(w1, w2, p, r))
        assert exact == pytest.approx(brute_force(w1, w2, p, r), abs=1e-5)


def test_known_values():
    assert surfaces.bias_free_loss(1.0, -1.0, 0.4, 2.0) == pytest.approx(3 * 0.4**2 / 6)
    assert surfaces.bias_free_loss(1.0, 0.0, 0.4, 2.0) == pytest.approx(2 * 0.4 / 3)


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_the_principal_component_is_a_minimum_at_equal_importance(p):
    found = surfaces.minima(p, 1.0, 31)
    same = found[found[:, 1] > 0][0]
    np.testing.assert_allclose(same[:2], np.sqrt(0.5), atol=1e-5)
    assert same[2] == pytest.approx(p / 3 - p**2 / 4)


def test_exchanging_the_features_inverts_the_importance():
    first, second = surfaces.minima(0.8, 0.5, 31)[0], surfaces.minima(0.8, 2.0, 31)[0]
    np.testing.assert_allclose(first[:2], second[1::-1], atol=1e-4)
    assert second[2] == pytest.approx(2 * first[2])


def test_the_best_direction_changes_at_the_limit():
    limit = surfaces.pair_density_limit()
    before, after = (surfaces.minima(limit + step, 1.0, 31)[0] for step in (-0.01, 0.01))
    assert before[0] * before[1] < 0 < after[0] * after[1]


def test_coarse_grid_finds_the_global_minimum():
    for p, r in ((0.1, 1.0), (0.9, 0.3)):
        exact = surfaces.minima(p, r, 61)[0][:2]
        np.testing.assert_allclose(surfaces.minimum_on_grid(p, r), exact, atol=0.03)
