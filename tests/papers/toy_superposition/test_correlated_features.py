import numpy as np
import pytest
import torch

from papers.toy_superposition.correlated_features import (
    COLLAPSE_DENSITIES,
    DENSITIES,
    LARGE_DENSITIES,
    LARGE_SET,
    Parameters,
    anticorrelated,
    correlated,
    evaluate,
    partner_cosines,
    partners_adjacent,
    second_component,
)
from papers.toy_superposition.inputs import Batch
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import Recipe

CONFIG = Parameters(recipe=Recipe(steps=1), restarts=2, per_support=2, batches=1)


def circle(*degrees):
    """Unit features at these angles."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)])


def test_correlated_features_come_together():
    inputs = correlated(torch.tensor([0.1, 0.5]), size=2, sets=3, each=4)
    assert inputs.supports.shape == (8, 6)
    assert torch.equal(inputs.supports[:, 0::2], inputs.supports[:, 1::2])
    torch.testing.assert_close(inputs.probability.sum(1), torch.ones(2))
    on = inputs.probability @ inputs.supports.float()
    torch.testing.assert_close(on, torch.tensor([[0.1], [0.5]]).expand(2, 6))


def test_correlated_values_are_independent():
    batch = correlated(torch.tensor([1.0]), size=2, sets=1, each=2000).sample(
        torch.Generator().manual_seed(0)
    )
    active = batch.x[0, :, batch.x[0, 0] > 0]
    assert abs(float(torch.corrcoef(active)[0, 1])) < 0.1


def test_anticorrelated_features_come_one_at_a_time():
    inputs = anticorrelated(torch.tensor([0.1]), size=3, sets=2, each=4)
    assert inputs.supports.shape == (16, 6)
    assert int(inputs.supports.view(16, 2, 3).sum(-1).max()) == 1
    torch.testing.assert_close(inputs.probability.sum(1), torch.ones(1))
    on = inputs.probability @ inputs.supports.float()
    torch.testing.assert_close(on, torch.full((1, 6), 0.1 / 3))


def test_opposite_unit_vectors_reconstruct_anticorrelated_pairs_exactly():
    models = create(Architecture(), 2, 4, 2, torch.Generator().manual_seed(0))
    models.W[0] = torch.tensor(circle(0, 180, 90, 270))
    models.W[1] = torch.tensor(circle(0, 90, 180, 270))  # antipodes across the pairs
    inputs = anticorrelated(torch.tensor([0.3]), size=2, sets=2, each=200)
    batch: Batch = inputs.sample(torch.Generator().manual_seed(0))
    exact, across = models.losses(batch).tolist()
    assert exact == pytest.approx(0, abs=1e-12)
    assert across > 1e-3


def test_second_component():
    together = np.array([[1.0, 1], [0, 0]])
    orthogonal = np.eye(2)
    opposite = np.array([[1.0, -1], [0, 0]])
    unequal = np.array([[1.0, 0.5], [0, 0]])
    W = np.stack([together, orthogonal, opposite, unequal, np.zeros((2, 2))])
    expected = [0, 0.5, 1, 0.25 / 2 / 1.25, 0.5]
    np.testing.assert_allclose(second_component(W)[:, 0], expected, atol=1e-12)


def test_partners_are_adjacent_across_the_cut_at_180_degrees():
    side_by_side = circle(170, -170, 50, 110, -50, -110)
    interleaved = circle(0, 120, 60, 180, 240, 300)
    models = np.stack([side_by_side, interleaved, side_by_side[:, [0, 2, 1, 3, 4, 5]]])
    assert partners_adjacent(models).tolist() == [True, False, False]
    np.testing.assert_allclose(partner_cosines(models)[0], np.cos(np.radians([20, 60, 60])))


def constructed_arrays():
    """The paper's solutions, all restarts alike."""

    def restarts(*models):
        return np.stack([np.stack([W, W]) for W in models])

    hexagon = circle(0, 60, 120, 180, 240, 300)
    pairs_of = len(DENSITIES)
    collapsed = [circle(0, 0, 120, 120, 240, 240), circle(0, 0, 90, 90, 180, 270)]
    bases = np.concatenate([np.eye(LARGE_SET), -np.eye(LARGE_SET)], axis=1)
    counts = len(COLLAPSE_DENSITIES) - len(collapsed)
    return {
        "pairs_W": restarts(*[circle(0, 90, 180, 270)] * pairs_of),
        "opposites_W": restarts(*[circle(0, 180, 90, 270)] * pairs_of),
        "opposites_loss": np.zeros((pairs_of, 2)),
        "neighbours_W": restarts(*[hexagon] * pairs_of),
        "bases_W": np.stack([bases] * len(LARGE_DENSITIES))[:, None],
        "collapse_W": restarts(*collapsed, *[hexagon] * counts),
    }


def test_evaluate_recognises_the_solutions_of_the_paper():
    metrics = evaluate(CONFIG, constructed_arrays()).metrics
    assert metrics["pairs"]["best_max_abs_cosine"] == pytest.approx(np.zeros(3), abs=1e-12)
    assert set(metrics["pairs"]["share_orthogonal"]) == {1.0}
    assert set(metrics["opposites"]["share_opposite"]) == {1.0}
    assert metrics["opposites"]["best_norms"] == pytest.approx(np.ones(12))
    assert metrics["neighbours"]["best_adjacent"] == 1
    assert metrics["neighbours"]["best_gap_error_degrees"] == pytest.approx(np.zeros(2))
    assert metrics["bases"]["represented"].tolist() == [20, 20]
    assert metrics["bases"]["max_within"] == pytest.approx([0, 0])
    assert metrics["bases"]["rms_across"] == pytest.approx([0.1**0.5] * 2)
    assert metrics["collapse"]["sets"].tolist() == [3, 2, 0, 0, 0, 0, 0, 0]
    assert metrics["collapse"]["principal_share_when_dense"] == pytest.approx(1)


def test_evaluate_rejects_other_solutions():
    arrays = constructed_arrays()
    arrays["pairs_W"], arrays["opposites_W"] = arrays["opposites_W"], arrays["pairs_W"]
    arrays["neighbours_W"] = arrays["neighbours_W"][..., [0, 2, 1, 3, 4, 5]]
    metrics = evaluate(CONFIG, arrays).metrics
    assert set(metrics["pairs"]["share_orthogonal"]) == {0.0}
    assert set(metrics["opposites"]["share_opposite"]) == {0.0}
    assert metrics["neighbours"]["best_adjacent"] == 0
