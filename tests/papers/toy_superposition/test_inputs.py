import pytest
import torch

from papers.toy_superposition.inputs import SparseUniform, Supports, independent_supports

N = 6
DENSITIES = torch.tensor([1.0, 0.5, 0.1, 0.01, 0.001])


def expectation(batch, values):
    """Average `values` ([groups, ..., batch]) by the weights of a batch."""
    return (values * batch.weight.view(len(values), *[1] * (values.ndim - 2), -1)).sum(-1)


@pytest.mark.parametrize("signed", [False, True])
def test_moments_of_sparse_uniform(signed):
    batch = SparseUniform(DENSITIES, N, 200_000, signed).sample(torch.Generator().manual_seed(0))
    p = DENSITIES[:, None].expand(-1, N)
    torch.testing.assert_close(batch.weight.sum(1), torch.ones(5))
    torch.testing.assert_close(expectation(batch, (batch.x != 0).float()), p, rtol=0.03, atol=0)
    torch.testing.assert_close(expectation(batch, batch.x**2), p / 3, rtol=0.03, atol=0)
    mean = torch.zeros_like(p) if signed else p / 2
    torch.testing.assert_close(expectation(batch, batch.x), mean, rtol=0.03, atol=0.004)


def test_features_are_independent():
    batch = SparseUniform(DENSITIES, N, 400_000).sample(torch.Generator().manual_seed(0))
    pairs = expectation(batch, batch.x[:, :1] * batch.x[:, 1:])
    expected = (DENSITIES[:, None] / 2) ** 2
    torch.testing.assert_close(pairs, expected.expand(-1, N - 1), rtol=0.15, atol=0)


def test_without_empty_inputs_plain_sampling_is_used():
    batch = SparseUniform(torch.tensor([0.5]), 100, 64).sample(torch.Generator().manual_seed(0))
    assert torch.equal(batch.weight, torch.full((1, 64), 1 / 64))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_density(density):
    with pytest.raises(ValueError, match="densities"):
        SparseUniform(torch.tensor([density]), 3, 8).sample(torch.Generator())


def test_enumerated_supports_have_the_exact_probability_of_each():
    density = torch.tensor([[0.2, 0.5, 0.9]])
    supports, probability = independent_supports(density)
    assert len(supports) == 8
    torch.testing.assert_close(probability.sum(1), torch.ones(1))
    torch.testing.assert_close((probability[:, :, None] * supports).sum(1), density)
    batch = Supports(supports, probability, 64).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(expectation(batch, (batch.x > 0).float()), density)
    # Stratified values: the mean is exact to the jitter within a stratum.
    torch.testing.assert_close(expectation(batch, batch.x), density / 2, rtol=2e-3, atol=0)
