import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from shared.saes.pursuit import COLUMNS, gradient_pursuit, gradient_pursuits
from shared.saes.standard import StandardConfig
from shared.saes.weights import weights_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dictionary(d_sae, d_in, seed=0):
    rows = torch.randn(d_sae, d_in, generator=generator(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def errors(x, f, W_dec, b_dec):
    return (x - b_dec - f @ W_dec).square().sum(1)


def overcomplete():
    x = torch.randn(200, 16, generator=generator(1))
    return x, dictionary(80, 16), torch.randn(16, generator=generator(2))


@pytest.mark.parametrize("l0", [1, 3, 8])
def test_an_orthonormal_dictionary_gives_the_largest_positive_projections(l0):
    W_dec = torch.linalg.qr(torch.randn(8, 8, generator=generator())).Q
    x, b_dec = torch.randn(50, 8, generator=generator(1)), torch.randn(8, generator=generator(2))
    projections = ((x - b_dec) @ W_dec.T).relu()
    least = projections.topk(l0, dim=1).values[:, -1:]
    expected = torch.where(projections >= least, projections, 0)
    torch.testing.assert_close(gradient_pursuit(x, W_dec, b_dec, l0), expected)


def test_codes_are_sparse_and_not_negative():
    x, W_dec, b_dec = overcomplete()
    for l0 in (1, 4, 12):
        f = gradient_pursuit(x, W_dec, b_dec, l0)
        assert f.shape == (200, 80)
        assert f.min() >= 0
        assert (f > 0).sum(1).max() <= l0


def test_no_vector_gets_worse_by_another_round():
    x, W_dec, b_dec = overcomplete()
    rounds = list(range(30))
    found = torch.stack(
        [errors(x, f, W_dec, b_dec) for f in gradient_pursuits(x, W_dec, b_dec, rounds)]
    )
    assert (found.diff(dim=0) <= 1e-5 * found[0]).all()
    assert found[-1].mean() < 0.1 * found[0].mean()


def test_activations_that_would_fall_below_zero_leave():
    """Else non-negativity would have been put to no test above."""
    x, W_dec, b_dec = overcomplete()
    before, after = gradient_pursuits(x, W_dec, b_dec, [10, 20])
    assert ((before > 0) & (after == 0)).any()


def test_one_round_takes_the_best_single_feature():
    x, W_dec, b_dec = overcomplete()
    best, chosen = ((x - b_dec) @ W_dec.T).max(1)
    expected = torch.zeros(200, 80).scatter_(1, chosen[:, None], best[:, None])
    torch.testing.assert_close(gradient_pursuit(x, W_dec, b_dec, 1), expected)


def test_the_second_round_is_the_step_of_blumensath_and_davies():
    """x ← x + a g on the support, a = ‖g‖² / ‖g W‖², g the correlations with the residual."""
    x, W_dec, b_dec = overcomplete()
    first, second = gradient_pursuits(x, W_dec, b_dec, [1, 2])
    for vector, one, two in zip(x - b_dec, first, second, strict=True):
        gradient = W_dec @ (vector - one @ W_dec)
        support = one > 0
        support[gradient.argmax()] = True
        direction = torch.where(support, gradient, 0)
        length = direction.square().sum() / (direction @ W_dec).square().sum()
        expected = one + length * direction
        if (expected >= 0).all():
            torch.testing.assert_close(two, expected, rtol=1e-4, atol=1e-5)


def test_it_recovers_sparse_codes_as_orthogonal_matching_pursuit_does():
    W_dec, b_dec = dictionary(60, 128), torch.zeros(128)
    order = torch.rand(40, 60, generator=generator(3)).argsort(1)
    f = torch.where(order < 3, 1 + torch.rand(40, 60, generator=generator(4)), 0)
    x = f @ W_dec
    theirs = orthogonal_mp(W_dec.T.double().numpy(), x.T.double().numpy(), n_nonzero_coefs=3).T
    np.testing.assert_allclose(theirs, f, atol=1e-6)
    ours = gradient_pursuit(x, W_dec, b_dec, 12)
    torch.testing.assert_close(ours, f, rtol=0, atol=0.02)


def test_the_error_lies_between_the_best_codes_of_its_features_and_matching_pursuit():
    """Least squares on the support bounds it from below, a plain matching pursuit from above."""
    x, W_dec, b_dec = overcomplete()
    f = gradient_pursuit(x, W_dec, b_dec, 6)
    ours = errors(x, f, W_dec, b_dec)
    best = []
    for vector, one in zip(x - b_dec, f, strict=True):
        rows = W_dec[one > 0].double().numpy()
        best.append(nnls(rows.T, vector.double().numpy())[1] ** 2)
    assert (ours >= torch.tensor(best).float() - 1e-4).all()

    plain = torch.zeros_like(f)
    for _ in range(6):
        best_now, chosen = ((x - b_dec - plain @ W_dec) @ W_dec.T).max(1)
        plain.scatter_add_(1, chosen[:, None], best_now.clamp_min(0)[:, None])
    assert ours.mean() < errors(x, plain, W_dec, b_dec).mean()


def test_all_numbers_of_rounds_cost_one_run_and_give_the_same_codes():
    x, W_dec, b_dec = overcomplete()
    together = gradient_pursuits(x, W_dec, b_dec, [7, 0, 3])
    for l0, f in zip((7, 0, 3), together, strict=True):
        torch.testing.assert_close(f, gradient_pursuit(x, W_dec, b_dec, l0))
    assert not together[1].any()


def test_the_blocks_of_inner_products_join_without_a_seam():
    W_dec = dictionary(COLUMNS + 3, 8)
    x = 2 * W_dec[[0, COLUMNS - 1, COLUMNS, COLUMNS + 2]]
    f = gradient_pursuit(x, W_dec, torch.zeros(8), 3)
    expected = torch.zeros_like(f)
    for row, feature in enumerate((0, COLUMNS - 1, COLUMNS, COLUMNS + 2)):
        expected[row, feature] = 2
    torch.testing.assert_close(f, expected, rtol=0, atol=1e-5)


def test_a_vector_that_no_feature_points_to_gets_none():
    W_dec = torch.eye(3)
    x = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])
    f = gradient_pursuit(x, W_dec, torch.zeros(3), 3)
    torch.testing.assert_close(f, torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]))


def test_it_needs_no_encoder_and_beats_an_untrained_one():
    weights = weights_of(StandardConfig(d_in=16, d_sae=64, l1=0.0, seed=0).create().export())
    x = torch.randn(100, 16, generator=generator(5))
    f = gradient_pursuit(x, weights.W_dec, weights.b_dec, 10)
    encoded = weights.decode(weights.encode(x))
    assert errors(x, f, weights.W_dec, weights.b_dec).mean() < (x - encoded).square().sum(1).mean()


@pytest.mark.parametrize("l0s", [[], [-1], [3, -2]])
def test_rounds_should_be_zero_or_more(l0s):
    x, W_dec, b_dec = overcomplete()
    with pytest.raises(ValueError, match="rounds of pursuit should be zero or more"):
        gradient_pursuits(x, W_dec, b_dec, l0s)
