import itertools

import pytest
import torch

from papers.toy_superposition.inputs import Batch, SparseUniform
from papers.toy_superposition.models import Architecture, concatenate, create

ARCHITECTURES = [
    Architecture(hidden_relu=hidden, output_relu=output, tied=tied, absolute=absolute)
    for hidden, output, tied, absolute in itertools.product([False, True], repeat=4)
]


def random_batch(groups: int, n: int, seed: int = 0) -> Batch:
    inputs = SparseUniform(torch.linspace(0.1, 1, groups), n, 64, signed=True)
    return inputs.sample(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_autograd(architecture):
    source = torch.Generator().manual_seed(1)
    models = create(architecture, 6, 5, 3, source, importance=0.7 ** torch.arange(5))
    models.b.normal_(generator=source)
    batch = random_batch(3, 5)
    gradients = models.gradients(batch)
    for tensor in models.parameters:
        tensor.requires_grad_()
    models.losses(batch).sum().backward()
    torch.testing.assert_close(gradients.W, models.W.grad)
    torch.testing.assert_close(gradients.b, models.b.grad)
    if models.W_out is not None:
        torch.testing.assert_close(gradients.W_out, models.W_out.grad)


def test_a_group_sees_only_its_own_inputs():
    models = create(Architecture(), 4, 5, 2, torch.Generator().manual_seed(0))
    batch = random_batch(2, 5)
    alone = models.select(torch.tensor([2, 3])).losses(Batch(batch.x[1:], batch.weight[1:]))
    torch.testing.assert_close(models.losses(batch)[2:], alone)


def test_identity_model_has_zero_loss_and_zero_model_loses_the_second_moment():
    models = create(Architecture(), 2, 3, 3, torch.Generator().manual_seed(0))
    models.W[0], models.W[1] = torch.eye(3), 0
    x = torch.rand(1, 3, 1000)
    losses = models.losses(Batch(x, torch.full((1, 1000), 1e-3)))
    assert losses[0] < 1e-12
    torch.testing.assert_close(losses[1], x.square().sum(1).mean())


def test_concatenate_is_the_inverse_of_select():
    models = create(Architecture(tied=False), 5, 4, 2, torch.Generator().manual_seed(0))
    halves = [models.select(torch.arange(2)), models.select(torch.arange(2, 5))]
    joined = concatenate(halves)
    for mine, original in zip(joined.parameters, models.parameters, strict=True):
        assert torch.equal(mine, original)
