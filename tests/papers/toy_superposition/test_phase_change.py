import numpy as np
import pytest
import torch

from papers.toy_superposition import phase_change as experiment
from papers.toy_superposition.models import Architecture, ToyModels
from papers.toy_superposition.phase_theory import candidate_losses, candidates, phases

CONFIG = experiment.Parameters(
    recipe={"steps": 1}, cells_two=5, cells_three=5, cells_cut=4, per_support=1
)


def weights(gram: np.ndarray) -> np.ndarray:
    """A W with WᵀW = gram and one row less than columns."""
    values, vectors = np.linalg.eigh(gram)
    return (np.sqrt(values.clip(0))[:, None] * vectors.T)[1:]


def models(n: int) -> np.ndarray:
    return np.stack([weights(candidate.gram) for candidate in candidates(n)])


@pytest.mark.parametrize("n", [2, 3])
def test_a_candidate_is_nearest_to_itself_rotated_or_rescaled(n):
    W = models(n)
    expected = list(range(len(W)))
    assert experiment.nearest_candidates(-0.9 * W).tolist() == expected
    if n == 3:
        assert experiment.nearest_candidates(W[:, :, [1, 0, 2]]).tolist() == expected


def test_commonest_and_agreement():
    assert experiment.commonest(np.array([[0, 2, 2], [1, 1, 0]])).tolist() == [2, 1]
    agrees = np.array([True, False, True])
    assert experiment.agreement(agrees, np.array([True, True, False])) == 0.5
    assert experiment.agreement(agrees, np.zeros(3, dtype=bool)) == 0


def test_an_absent_extra_feature_does_not_count_as_interfering():
    W = np.array([[[1.0, 1e-6]], [[1e-9, 1.0]]])
    norm, other = experiment.extra_feature(W)
    assert norm == pytest.approx(0.5, abs=1e-5)
    assert other == pytest.approx(0, abs=1e-5)
    assert experiment.extra_feature(np.array([[[1.0, -1.0]]]))[1] == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 3])
def test_quadrature_gives_the_closed_form_losses(n):
    density = torch.tensor([0.05, 0.4, 1.0])
    W = torch.tensor(models(n)).float()
    r = torch.ones(len(W) * 3, n)
    r[:, -1] = 2
    b = torch.zeros(3, len(W), n)
    for index, candidate in enumerate(candidates(n)):
        if candidate.ignored is not None:
            b[:, index, candidate.ignored] = density / 2
    toy = ToyModels(Architecture(), W.repeat(3, 1, 1), b.view(-1, n), r)
    batch = experiment.Quadrature(density, n).sample(torch.Generator())
    torch.testing.assert_close(batch.weight.sum(1), torch.ones(3))
    expected = candidate_losses(n, np.array(2.0), density.double().numpy())
    np.testing.assert_allclose(toy.losses(batch).view(3, -1), expected, rtol=3e-3)


def perfect() -> dict[str, np.ndarray]:
    """Arrays of models that are the theory's own solutions."""
    arrays = {}
    for name, n in (("two", 2), ("three", 3), ("cut", 2)):
        density = np.linspace(0.4, 1, 4) if name == "cut" else np.geomspace(0.01, 1, 5)
        importance = np.ones(1) if name == "cut" else np.geomspace(0.1, 10, 5)
        r, p = np.meshgrid(importance, density)
        W = models(n)[phases(n, r, p)]
        arrays |= {
            f"{name}_importance": importance,
            f"{name}_density": density,
            f"{name}_W": np.repeat(W[:, :, None], experiment.RESTARTS - 1, axis=2),
            f"{name}_loss": candidate_losses(n, r, p).min(-1),
        }
    return arrays


def test_the_theory_agrees_with_itself_and_a_wrong_model_does_not():
    arrays = perfect()
    metrics = experiment.evaluate(CONFIG, arrays).metrics
    for name in ("two", "three"):
        assert metrics[name]["agreement_of_average"] == 1
        assert metrics[name]["agreement_of_best"] == 1
        assert metrics[name]["loss_over_theory_max"] == pytest.approx(1)
    assert metrics["theory"]["boundary_mismatch"] < 1e-12
    arrays["two_W"][:] = [[1.0, 0.0]]
    assert experiment.evaluate(CONFIG, arrays).metrics["two"]["agreement_of_best"] < 0.5


def test_colours_run_from_grey_to_saturated():
    rgb = experiment.colours(np.array([0.0, 0.0, 1.2]), np.array([0.0, 1.0, 1.0]))
    assert np.allclose(rgb[0], rgb[1])
    assert rgb[2, 0] > rgb[2, 2]
