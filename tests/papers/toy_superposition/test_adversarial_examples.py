"""Attacks on models whose vulnerability is known."""

import numpy as np
import pytest
import torch

from papers.toy_superposition.adversarial_examples import (
    Parameters,
    attacked_losses,
    baseline,
    directions,
    evaluate,
    mean_norm,
    vulnerability,
)
from papers.toy_superposition.inputs import Batch, SparseUniform
from papers.toy_superposition.training import Recipe, generator

CONFIG = Parameters(samples=4, recipe=Recipe(steps=1), restarts=1, batch=4)


def test_directions_are_unit_vectors_or_zero() -> None:
    length = directions(torch.tensor([[1.0, -2.0, 0.0]])).norm(dim=-1)
    torch.testing.assert_close(length, torch.tensor([1.0, 1.0, 0.0]))


def test_mean_norm_respects_weights() -> None:
    x = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])
    assert float(mean_norm(Batch(x, torch.tensor([[0.25, 0.75]])))) == pytest.approx(1.25)


def test_attacks_against_explicit_perturbations() -> None:
    stream = torch.Generator().manual_seed(0)
    W, b = torch.randn(2, 4, generator=stream), torch.randn(4, generator=stream)
    x = torch.rand(4, 5, generator=stream)
    losses = attacked_losses(W, b, x, 0.3)
    assert losses.shape == (9, 5)
    unit = (W.T @ W)[1] / (W.T @ W)[1].norm()
    for row, step in ((1, 0.3), (5, -0.3), (8, 0.0)):
        y = torch.relu(W.T @ W @ (x + step * unit[:, None]) + b[:, None])
        torch.testing.assert_close(losses[row], (y - x).square().sum(0))


def test_the_baseline_loses_the_squared_attack_in_both_readings() -> None:
    inputs = SparseUniform(torch.tensor([0.3]), 6, 64)
    samples = [inputs.sample(generator(0, stream, "cpu")) for stream in (2, 3)]
    fixed, chosen = vulnerability(*baseline(2, 6, 0.3), *samples, size=0.1)
    assert fixed == pytest.approx(0.01, rel=1e-3)
    assert chosen == pytest.approx(0.01, rel=1e-3)


def test_evaluate_on_vulnerability_equal_to_features_per_dimension() -> None:
    star = np.array([1.0, 0.5, 0.25])
    rise = np.stack([np.stack([1 / star, 2 / star], 1), np.ones((3, 2))], axis=1)
    antipodal = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    arrays = {
        "density": np.array([1.0, 0.5, 0.1]),
        "dimensions_per_feature": star,
        "rise": rise,
        "trained_W": np.tile(antipodal, (13, 2, 1, 1)),
    }
    metrics = evaluate(CONFIG, arrays).metrics
    np.testing.assert_allclose(metrics["fixed"]["ratio"], [1, 2, 4])
    assert metrics["per_sample"]["sparsest"] == pytest.approx(8)
    assert metrics["fixed"]["correlation"] == pytest.approx(1)
    assert metrics["training"]["dimensionality"][0] == pytest.approx(0.5)
    assert np.isnan(metrics["training"]["budget_until_alone"])
