import pytest
import torch

from papers.toy_superposition import training
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import AdamW, Recipe, best, score, train
from shared.errors import Diverged

INPUTS = SparseUniform(torch.tensor([1.0, 0.1]), 4, 128)


def models(instances=6):
    return create(Architecture(), instances, 4, 2, torch.Generator().manual_seed(0))


def test_joint_training_equals_training_alone():
    recipe = Recipe(steps=50, lr=1e-2)
    joint = train(models(), INPUTS, recipe, 0, "joint")
    chosen = torch.tensor([1, 4])  # one model of each group
    alone = train(models().select(chosen), INPUTS, recipe, 0, "alone")
    torch.testing.assert_close(joint.W[chosen], alone.W, rtol=1e-4, atol=1e-6)


def test_slices_change_nothing(monkeypatch):
    recipe = Recipe(steps=50, lr=1e-2, schedule="cosine")
    whole = train(models(), INPUTS, recipe, 0, "whole")
    monkeypatch.setattr(training, "CPU_ELEMENTS", 2 * 4 * 128)
    assert len(training._slices(models(), INPUTS)) == 3
    sliced = train(models(), INPUTS, recipe, 0, "sliced")
    torch.testing.assert_close(whole.W, sliced.W, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(score(whole, INPUTS, 2, 0, 2), score(sliced, INPUTS, 2, 0, 2))


def test_training_leaves_the_models_it_was_given_alone():
    before = models()
    copy = before.W.clone()
    train(before, INPUTS, Recipe(steps=3), 0, "x")
    assert torch.equal(before.W, copy)


def test_training_learns_the_two_most_important_features_when_dense():
    importance = torch.tensor([1.0, 0.8, 0.3, 0.1])
    start = create(Architecture(), 3, 4, 2, torch.Generator().manual_seed(0), importance)
    dense = SparseUniform(torch.ones(1), 4, 256)
    trained = train(start, dense, Recipe(steps=2000, lr=1e-2, schedule="cosine"), 0, "x")
    winner = best(score(trained, dense, 4, 0, 2), 1)
    norms = trained.W[winner].norm(dim=1)[0]
    assert norms[:2].min() > 0.9
    assert norms[2:].max() < 0.2


def test_best_orders_each_group():
    losses = torch.tensor([3.0, 1.0, 2.0, 5.0, 6.0, 4.0])
    assert best(losses, 2).tolist() == [1, 5]
    assert best(losses, 2, keep=2).tolist() == [1, 2, 5, 3]


def test_divergence_is_reported():
    with pytest.raises(Diverged, match="mine: weights are not finite after 5 steps"):
        train(models(), INPUTS, Recipe(steps=5, lr=float("inf")), 0, "mine")


def test_observation_sees_the_start_and_the_end():
    steps = []
    train(models(), INPUTS, Recipe(steps=10), 0, "x", lambda step, _: steps.append(step), 4)
    assert steps == [0, 4, 8, 10]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_adamw_equals_torch(schedule):
    recipe = Recipe(steps=30, lr=0.05, schedule=schedule, weight_decay=0.1)
    mine = [torch.randn(3, 4), torch.randn(5)]
    theirs = [tensor.clone().requires_grad_() for tensor in mine]
    own = AdamW(mine, recipe)
    reference = torch.optim.AdamW(theirs, lr=recipe.lr, weight_decay=recipe.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, recipe.steps)
    for _ in range(recipe.steps):
        gradients = [torch.randn_like(tensor) for tensor in mine]
        own.step(gradients)
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient
        reference.step()
        if schedule == "cosine":
            cosine.step()
    for tensor, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(tensor, other.detach())
