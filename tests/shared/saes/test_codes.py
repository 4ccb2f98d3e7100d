import pytest
import torch

from shared.saes.codes import DenseCodes, SparseCodes, codes_of


def activations(batch=12, d_sae=40, share=0.04, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(batch, d_sae, generator=generator) + 0.1
    return (f * (torch.rand(batch, d_sae, generator=generator) < share)).to(dtype)


def dense(codes, shape):
    if isinstance(codes, DenseCodes):
        return codes.f.float()
    f = torch.zeros(shape)
    f[codes.rows, codes.features] = codes.values
    return f


SHAPES = [(12, 40), (3, 5), (1, 7), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_products_are_the_dense_ones(shape, dtype, monkeypatch):
    monkeypatch.setattr("shared.saes.codes.SPARSE_BELOW", 1.0)
    f = activations(*shape, share=0.3, dtype=dtype)
    codes = codes_of(f)
    assert isinstance(codes, SparseCodes)
    assert torch.equal(dense(codes, shape), f.float())
    rows, matrix = torch.randn(shape[0], 6), torch.randn(shape[1], 6)
    exact = DenseCodes(f.float())
    torch.testing.assert_close(codes.times(matrix), exact.times(matrix))
    torch.testing.assert_close(codes.transposed_times(rows), exact.transposed_times(rows))
    torch.testing.assert_close(codes.feature_sums(), exact.feature_sums())
    torch.testing.assert_close(codes.row_sums(), exact.row_sums())
    torch.testing.assert_close(codes.firings(), exact.firings())
    slope = codes.where_active(rows, matrix, plus=0.5)
    expected = torch.where(f > 0, rows @ matrix.T + 0.5, 0)
    torch.testing.assert_close(dense(slope, shape), expected)
    torch.testing.assert_close(exact.where_active(rows, matrix, plus=0.5).f, expected)


def test_the_form_follows_the_share_of_active_entries():
    assert isinstance(codes_of(activations(share=0.01)), SparseCodes)
    assert isinstance(codes_of(activations(share=0.5)), DenseCodes)


def test_nothing_active():
    codes = codes_of(torch.zeros(4, 6))
    assert isinstance(codes, SparseCodes)
    assert torch.equal(codes.times(torch.ones(6, 3)), torch.zeros(4, 3))
    assert torch.equal(codes.transposed_times(torch.ones(4, 3)), torch.zeros(6, 3))
    assert not codes.where_active(torch.ones(4, 3), torch.ones(6, 3), 1.0).values.numel()
    assert not codes.firings().any()


def test_values_that_are_not_finite_stay():
    f = torch.zeros(4, 64)
    f[1, 3] = torch.nan
    codes = codes_of(f)
    assert isinstance(codes, SparseCodes)
    assert codes.values.isnan().tolist() == [True]


def test_more_features_than_sixteen_bits_count():
    f = torch.zeros(2, 2**16 + 8)
    f[0, [70, 2**16 + 1]] = torch.tensor([1.0, 2.0])
    f[1, [2**16 + 1]] = 3.0
    codes = codes_of(f)
    assert isinstance(codes, SparseCodes)
    assert codes.values[codes.by_feature].tolist() == [1, 2, 3]
    assert codes.feature_sums()[[70, 2**16 + 1]].tolist() == [1, 5]


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
def test_other_values_in_the_same_places(share, monkeypatch):
    monkeypatch.setattr("shared.saes.codes.SPARSE_BELOW", share)
    f, vector = activations(), torch.linspace(-1, 1, 40)
    codes = codes_of(f)
    scaled = codes.with_entries(codes.entries * codes.by_entry(vector))
    assert torch.equal(dense(scaled, f.shape), f * vector)
    # An activation that is now zero is no longer one.
    low = codes.with_entries(torch.relu(codes.entries - 0.6))
    expected = torch.relu(f - 0.6)
    assert 0 < (expected > 0).sum() < (f > 0).sum()
    assert torch.equal(low.firings(), (expected > 0).sum(0).float())
    rows, matrix = torch.randn(12, 6), torch.randn(40, 6)
    torch.testing.assert_close(low.times(matrix), expected @ matrix)
    torch.testing.assert_close(low.transposed_times(rows), expected.T @ rows)
    slope = dense(low.where_active(rows, matrix, plus=0.5), f.shape)
    torch.testing.assert_close(slope, torch.where(expected > 0, rows @ matrix.T + 0.5, 0))
