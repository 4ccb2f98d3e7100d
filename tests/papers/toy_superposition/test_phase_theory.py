import itertools

import numpy as np
import pytest

from papers.toy_superposition import phase_theory as theory

CELLS = [(r, p) for r in (0.1, 0.6, 1.0, 3.0, 10.0) for p in (0.01, 0.3, 4 / 7, 1.0)]


def ordered_nodes(active: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on x_1 > x_2 > ..., where the candidates are polynomials."""
    node, weight = np.polynomial.legendre.leggauss(4)
    node, weight = (node + 1) / 2, weight / 2
    points, weights = [], []
    for index in itertools.product(range(4), repeat=active):
        x = np.cumprod(node[list(index)])
        points.append(x)
        weights.append(np.prod(weight[list(index)]) * np.prod(x[:-1]))
    return np.array(points), np.array(weights)


def integrated_loss(gram: np.ndarray, bias: np.ndarray, r: float, p: float) -> float:
    """The expected loss by quadrature over every support and every ordering of its values."""
    n = len(gram)
    total = 0.0
    for active in range(n + 1):
        probability = p**active * (1 - p) ** (n - active)
        for features in itertools.permutations(range(n), active):
            if active:
                values, weights = ordered_nodes(active)
            else:
                values, weights = np.zeros((1, 0)), np.ones(1)
            x = np.zeros((len(values), n))
            x[:, features] = values
            error = (np.maximum(x @ gram + bias, 0) - x) ** 2
            error[:, -1] *= r
            total += probability * weights @ error.sum(1)
    return total


@pytest.mark.parametrize("n", [2, 3])
def test_candidate_losses_equal_numerical_integration(n):
    for r, p in CELLS:
        losses = theory.candidate_losses(n, np.array(r), np.array(p))
        for candidate, loss in zip(theory.candidates(n), losses, strict=True):
            bias = np.zeros(n)
            if candidate.ignored is not None:
                bias[candidate.ignored] = p / 2
            assert abs(integrated_loss(candidate.gram, bias, r, p) - loss) < 1e-12


@pytest.mark.parametrize("n", [2, 3])
def test_candidates_fit_into_one_dimension_less(n):
    for candidate in theory.candidates(n):
        values = np.linalg.eigvalsh(candidate.gram)
        assert values.min() > -1e-12
        assert (values > 1e-12).sum() == n - 1


def test_other_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match="2 and 3 features, not 4"):
        theory.candidates(4)


def test_losses_tie_on_the_boundaries():
    r = np.geomspace(0.1, 10, 21)
    low = np.minimum(r, 1)
    for n, ratio in ((2, r), (3, low)):
        losses = np.sort(theory.candidate_losses(n, ratio, theory.pair_boundary(ratio)))
        np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-12)
    triple = theory.candidate_losses(2, np.array(1.0), np.array(theory.TRIPLE_POINT))
    np.testing.assert_allclose(triple, triple[0], rtol=1e-12)
    p = theory.pair_boundary(np.array([0.1, 0.5, 1.0]))
    np.testing.assert_allclose([0.1, 0.5, 1.0], 2 * p / (4 - 5 * p), rtol=1e-12)
    beyond = theory.candidate_losses(3, np.array([2.0, 7.0]), np.array(theory.TRIPLE_POINT))
    np.testing.assert_allclose(beyond[:, 1], beyond[:, 3], rtol=1e-12)
    switch = theory.candidate_losses(3, np.array(1.0), np.array([0.05, 0.4]))
    np.testing.assert_allclose(switch[:, 2], switch[:, 3], rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_outlines_hold_the_cells_of_their_phase(n):
    from matplotlib.path import Path

    source = np.random.default_rng(0)
    r, p = 10 ** source.uniform(-1, 1, 400), 10 ** source.uniform(-2, 0, 400)
    found = theory.phases(n, r, p)
    clear = ~theory.near_boundary(n, r, p, 0.02)
    outlines = theory.boundaries(n, (0.1, 10.0), (0.01, 1.0))
    for index, candidate in enumerate(theory.candidates(n)):
        inside = Path(outlines[candidate.name]).contains_points(np.stack([r, p], 1))
        assert (inside == (found == index))[clear].all()


def test_near_boundary_measures_decades():
    r = 10 ** np.array([-0.11, -0.09, 0.09, 0.11])
    near = theory.near_boundary(2, r, np.full(4, 0.95), 0.1)
    assert near.tolist() == [False, True, True, False]


def test_biased_pair_loss_equals_a_fine_grid_and_contains_the_theory():
    x = (np.arange(1000) + 0.5) / 1000
    for square, bias, p in ((0.58, 0.33, 0.7), (1.0, 0.0, 0.3), (1.1, 0.02, 0.1)):
        alone = ((square * x + bias - x) ** 2).mean()
        other = (np.maximum(bias - square * x, 0) ** 2).mean()
        output = np.maximum(square * (x[:, None] - x) + bias, 0)
        both = ((output - x[:, None]) ** 2).mean()
        loss = 2 * ((1 - p) ** 2 * bias**2 + p * (1 - p) * (alone + other) + p**2 * both)
        assert abs(theory.biased_pair_loss(square, bias, p) - loss) < 2e-6
    assert theory.biased_pair_loss(1.0, 0.0, 0.3) == pytest.approx(0.3**2 / 3)


def test_best_biased_pair_beats_the_theory_at_the_apex_and_ties_when_dense():
    for p in (0.4, theory.TRIPLE_POINT, 0.7, 0.9):
        lowest = theory.candidate_losses(2, np.array(1.0), np.array(p)).min()
        assert theory.best_biased_pair(p)[2] < lowest
    assert theory.best_biased_pair(1.0)[2] == pytest.approx(1 / 12, rel=1e-6)
