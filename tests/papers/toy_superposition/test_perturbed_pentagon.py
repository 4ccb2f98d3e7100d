import numpy as np
import pytest
import torch

from papers.toy_superposition.geometry import angular_gaps
from papers.toy_superposition.inputs import Supports
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.perturbed_pentagon import (
    BASELINES,
    CURVE_RATIOS,
    DIGONS,
    OTHER,
    PENTAGON,
    RATIOS,
    Parameters,
    canonical,
    constructed,
    crossings,
    evaluate,
    kinds,
    neighbour_gap,
    perturbed_inputs,
)
from papers.toy_superposition.training import Recipe, generator
from shared.stages import rounded

ANGLE = 2 * np.pi * np.arange(5) / 5
REGULAR = np.stack([np.cos(ANGLE), np.sin(ANGLE)])
TWO_DIGONS = np.array([[0.0, 1, 0, -1, 0], [0, 0, 1, 0, -1]])
CONFIG = Parameters(
    recipe=Recipe(steps=1),
    restarts=2,
    per_support=2,
    curve_recipe=Recipe(steps=1),
    curve_seeds=1,
    curve_batches=1,
)


def turned(W, degrees, mirrored=False):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ (W * [[1], [-1 if mirrored else 1]])


def stretched():
    angle = ANGLE + np.radians([0, 8, 2, -1, -3])
    return np.stack([np.cos(angle), np.sin(angle)])


def test_kinds_ignore_orientation_and_the_direction_of_an_absent_feature():
    residue = TWO_DIGONS.copy()
    residue[:, 0] = 1e-5 * residue[:, 1]  # as training leaves it: tiny, but with a direction
    for degrees in (0, 17, 200):
        assert kinds(turned(REGULAR, degrees)) == PENTAGON
        assert kinds(turned(residue, degrees)) == DIGONS
    wrong_one_absent = TWO_DIGONS[:, [1, 0, 2, 3, 4]]
    on_one_side = np.stack([np.cos(ANGLE / 2), np.sin(ANGLE / 2)])
    models = np.stack([wrong_one_absent, on_one_side, np.zeros((2, 5))])
    assert kinds(models).tolist() == [OTHER] * 3


@pytest.mark.parametrize("W", [stretched(), TWO_DIGONS])
def test_canonical_lays_turned_and_mirrored_solutions_over_one_another(W):
    def points(model):
        others = canonical(model)[1:]
        return others[np.lexsort(others.round(6).T)]

    for degrees, mirrored in ((33, False), (120, True), (251, True)):
        np.testing.assert_allclose(points(turned(W, degrees, mirrored)), points(W), atol=1e-9)


def test_canonical_orientation():
    np.testing.assert_allclose(canonical(turned(REGULAR, 77))[0], [0, 1], atol=1e-12)
    diagonal = np.abs(canonical(turned(TWO_DIGONS, 77))[1:])
    np.testing.assert_allclose(diagonal, np.sqrt(0.5), atol=1e-12)


def test_angles_of_a_regular_pentagon_and_of_a_stretched_one():
    np.testing.assert_allclose(angular_gaps(np.stack([REGULAR] * 2)), np.full((2, 5), 72))
    models = np.stack([turned(REGULAR, 50), turned(stretched(), 50)])
    assert neighbour_gap(models) == pytest.approx([72, 72 + (8 + 3) / 2])


def test_crossings_of_known_curves():
    ratios = np.array(CURVE_RATIOS)
    pentagon, digons = ratios**0.5, 2 * ratios
    assert crossings(ratios, pentagon, digons) == pytest.approx([0.25], rel=1e-9)
    assert len(crossings(ratios, pentagon, pentagon / 2)) == 0
    hidden = np.where(ratios > 0.2, np.nan, digons)  # the branch ends before the crossing
    assert len(crossings(ratios, pentagon, hidden)) == 0
    assert len(crossings(ratios, pentagon, np.full_like(ratios, np.nan))) == 0


def test_only_the_varied_feature_has_another_density():
    inputs = perturbed_inputs(torch.tensor([0.1]), torch.tensor([0.5]), 1)
    on = inputs.probability @ inputs.supports.float()
    torch.testing.assert_close(on, torch.tensor([[0.05, 0.1, 0.1, 0.1, 0.1]]))


def test_constructed_starts_are_of_the_kinds_they_stand_for():
    start = constructed(torch.tensor([0.05, 0.1]), torch.ones(2), generator(0, 4, "cpu"))
    assert kinds(start.W.numpy()).tolist() == [PENTAGON, DIGONS] * 2
    assert start.b[1, 0] == pytest.approx(0.025)


def test_unbiased_digons_have_the_closed_form_loss():
    density, ratio = torch.tensor([0.05]), torch.tensor([0.5])
    exact = 2 * 0.05**2 / 3 + 0.025 / 3 - 0.025**2 / 4
    models = create(Architecture(), 1, 5, 2, torch.Generator().manual_seed(0))
    models.W[0] = torch.tensor(TWO_DIGONS)
    models.b[0, 0] = 0.025 / 2
    inputs: Supports = perturbed_inputs(density, ratio, 2000)
    loss = models.losses(inputs.sample(torch.Generator().manual_seed(0)))
    assert float(loss) == pytest.approx(exact, rel=5e-3)


def synthetic_arrays(crossing):
    """Solutions and losses that follow two power laws, which cross at one ratio."""
    models = np.stack([REGULAR, TWO_DIGONS])
    ratios, curve_ratios = np.array(RATIOS), np.array(CURVE_RATIOS)
    loss = np.stack([ratios**0.5, ratios * crossing**-0.5], axis=1)
    curve = np.stack([curve_ratios**0.5, curve_ratios * crossing**-0.5], axis=1)
    shape = (1, len(BASELINES), len(CURVE_RATIOS), 2)
    return {
        "W": np.broadcast_to(models, (len(RATIOS), 2, 2, 5)),
        "loss": loss,
        "winner": loss.argmin(1),
        "curve_W": np.broadcast_to(models, (*shape, 2, 5)),
        "curve_loss": np.broadcast_to(curve, shape),
    }


def test_evaluate_finds_the_crossing_and_the_jump():
    metrics = evaluate(CONFIG, synthetic_arrays(0.3)).metrics
    assert metrics["times_sparser"] == pytest.approx(1 / 0.3, rel=1e-6)
    assert set(metrics["crossings"]) == {1}
    assert metrics["kind_follows_lower_curve"] == 1
    assert metrics["varied_norm_jump"] == pytest.approx(1)
    assert metrics["gap_error_degrees_when_uniform"] == pytest.approx(0)
    assert metrics["kind_is_digons_when_sparsest"] == 1


def test_evaluate_notices_refits_that_do_not_follow_the_curves():
    arrays = synthetic_arrays(0.3)
    arrays["winner"] = 1 - arrays["winner"]
    metrics = evaluate(CONFIG, arrays).metrics
    assert metrics["kind_follows_lower_curve"] == 0
    assert metrics["kind_is_digons_when_sparsest"] == 0


def test_without_any_crossing_its_ratio_is_missing():
    arrays = synthetic_arrays(0.3)
    arrays["curve_W"] = np.zeros_like(arrays["curve_W"])
    metrics = rounded(evaluate(CONFIG, arrays).metrics)
    assert metrics["times_sparser"] is None
    assert set(metrics["crossings"]) == {0}
    assert metrics["octaves_of_coexistence"] == 0
