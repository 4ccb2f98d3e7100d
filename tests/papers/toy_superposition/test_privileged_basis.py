from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.neurons import (
    Block,
    blocks,
    carried,
    features_per_neuron,
    neurons_per_feature,
)
from papers.toy_superposition.privileged_basis import (
    DENSITIES,
    Stage,
    in_reading_order,
    strength,
    tournament,
    typing,
)
from papers.toy_superposition.training import Recipe


def three_alone_and_three_in_two() -> np.ndarray:
    """Rows: two neurons that share features 3, 4 and 5, then one each for 0, 1 and 2."""
    W = np.zeros((5, 10))
    W[0, [3, 4, 5]] = 0.85, 0.85, -0.7
    W[1, [3, 4, 5]] = 0.85, -0.8, 0.8
    W[[2, 3, 4], [2, 0, 1]] = 1
    return W + 0.05


def test_typing_counts_the_features_and_neurons_of_every_block():
    assert typing(three_alone_and_three_in_two()) == {
        "monosemantic": 3,
        "shared_features": 3,
        "shared_neurons": 2,
        "paired": 1,
    }


def test_ten_features_as_the_ten_pairs_of_five_neurons():
    W = np.zeros((5, 10))
    for feature, pair in enumerate(zip(*np.triu_indices(5, 1), strict=True)):
        W[list(pair), feature] = 0.7
    kind = typing(W)
    assert kind["paired"] == 10
    assert (kind["shared_features"], kind["shared_neurons"]) == (10, 5)


def test_a_large_negative_weight_does_not_carry_a_feature():
    W = np.zeros((1, 2))
    W[0] = 1, -5
    assert features_per_neuron(strength(W)).tolist() == [1]


def test_blocks_leave_out_dead_neurons_and_absent_features():
    values = np.array([[1.0, 0.3, 0, 0], [0, 0.5, 0.19 * 0.5, 0], [0.05, 0, 0, 0.05]])
    assert blocks(values) == [Block(features=(0, 1), neurons=(0, 1))]
    assert neurons_per_feature(values).tolist() == [1, 2, 0, 0]
    assert blocks(np.zeros((3, 4))) == []


def test_negative_strength_is_refused():
    with pytest.raises(ValueError, match="negative"):
        carried(np.array([[1.0, -1.0]]))


def test_reading_order_keeps_all_neurons_and_puts_dedicated_ones_first():
    W = three_alone_and_three_in_two()
    ordered = in_reading_order(W)
    assert ordered[:3].argmax(1).tolist() == [0, 1, 2]
    assert sorted(map(tuple, ordered)) == sorted(map(tuple, W))


@pytest.mark.parametrize("hidden_relu", [False, True])
def test_only_the_relu_makes_a_rotation_of_the_hidden_layer_matter(hidden_relu):
    source = torch.Generator().manual_seed(0)
    models = create(Architecture(hidden_relu=hidden_relu), 1, 10, 5, source)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=source))
    batch = SparseUniform(torch.tensor([0.3]), 10, 500).sample(source)
    change = (replace(models, W=rotation @ models.W).losses(batch) - models.losses(batch)).abs()
    assert bool(change < 1e-5) != hidden_relu


def test_tournament_returns_the_best_first_and_remembers_its_places():
    def stage(models: int) -> Stage:
        return Stage(models=models, batch=8, recipe=Recipe(steps=3), scoring_batches=1)

    found = tournament(Architecture(hidden_relu=True), [stage(6), stage(3), stage(2)], 0, "cpu")
    assert found["W"].shape == (len(DENSITIES), 5, 10)
    assert found["loss"].shape == (len(DENSITIES), 2)
    assert found["rank"].shape == (len(DENSITIES), 2)
    assert int(found["rank"][:, 0].max()) < 3
    assert int(found["rank"][:, 1].max()) < 2
