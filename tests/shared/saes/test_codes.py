import pytest
import torch

from shared.saes import codes as codes_module
from shared.saes.codes import DenseCodes, EvenCodes, SparseCodes, codes_at, codes_of
from shared.saes.topk import TopKConfig


def activations(batch=12, d_sae=40, share=0.04, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(batch, d_sae, generator=generator) + 0.1
    return (f * (torch.rand(batch, d_sae, generator=generator) < share)).to(dtype)


def dense(codes, shape):
    if isinstance(codes, DenseCodes):
        return codes.f.float()
    f = torch.zeros(shape)
    if isinstance(codes, EvenCodes):
        return f.scatter_(1, codes.features, codes.values)
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


def top(batch, d_sae, k, dtype=torch.float32, device="cpu"):
    """Activations, k in each row, some of them zero; their places; and the matrix of both.

    The first feature is active in every row.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, d_sae, generator=generator)
    z[:, 0] = 9
    values, features = z.topk(k, dim=1)
    values = values.relu().to(dtype)
    f = torch.zeros(batch, d_sae, dtype=dtype).scatter_(1, features, values)
    return values.to(device), features.to(device), f.to(device)


TOPS = [(300, 40, 6), (12, 40, 1), (5, 7, 7), (1, 3, 2)]


@pytest.mark.parametrize(("batch", "d_sae", "k"), TOPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [4, 256])
def test_even_products_are_the_dense_ones(batch, d_sae, k, dtype, piece, monkeypatch):
    monkeypatch.setattr(codes_module, "PIECE", piece)
    values, features, f = top(batch, d_sae, k, dtype)
    codes, exact = EvenCodes.of(values, features, d_sae), DenseCodes(f.float())
    rows, matrix, vector = torch.randn(batch, 6), torch.randn(d_sae, 6), torch.rand(d_sae)
    assert torch.equal(dense(codes, f.shape), f.float())
    torch.testing.assert_close(codes.times(matrix), exact.times(matrix))
    torch.testing.assert_close(
        codes.transposed_times(rows), exact.transposed_times(rows), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(codes.feature_sums(), exact.feature_sums())
    torch.testing.assert_close(codes.row_sums(), exact.row_sums())
    assert torch.equal(codes.firings(), exact.firings())
    scaled = codes.with_entries(codes.entries * codes.by_entry(vector))
    assert torch.equal(dense(scaled, f.shape), f.float() * vector)
    slope = codes.where_active(rows, matrix, plus=0.5)
    torch.testing.assert_close(dense(slope, f.shape), exact.where_active(rows, matrix, plus=0.5).f)
    assert torch.equal(slope.values == 0, values == 0)


def test_no_size_of_even_codes_depends_on_what_they_hold():
    """Tensors without data know sizes alone: what needed a value would raise."""
    values, features = torch.empty(6, 3, device="meta"), torch.empty(6, 3, device="meta").long()
    rows, matrix = torch.empty(6, 4, device="meta"), torch.empty(50, 4, device="meta")
    codes = EvenCodes.of(values, features, 50)
    assert codes.times(matrix).shape == (6, 4)
    slope = codes.where_active(rows, matrix, plus=0.0)
    assert slope.transposed_times(rows).shape == (50, 4)
    assert slope.feature_sums().shape == codes.firings().shape == (50,)
    assert codes.by_entry(matrix[:, 0]).shape == (6, 3)


@pytest.mark.parametrize(
    ("matmul", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_a_step_with_even_codes_has_the_gradients_of_a_dense_one(monkeypatch, matmul, most):
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    sae = TopKConfig(d_in=64, d_sae=512, k=8, seed=0, multi_k=32, dead_after=300).create(
        "cpu", matmul
    )
    sae.start(x)
    found = {}
    for name, form in {
        "dense": lambda values, features, d_sae: DenseCodes(
            values.new_zeros(len(values), d_sae).scatter_(1, features, values)
        ),
        "even": EvenCodes.of,
    }.items():
        monkeypatch.setattr("shared.saes.topk.codes_at", form)
        sae.unused.zero_()[:100] = 299
        found[name] = sae.gradients(x)
    (expected, exact), (gradients, measured) = found["dense"], found["even"]
    assert measured.scalars["aux"] > 0
    assert torch.equal(measured.fired, exact.fired)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() < most * gradient.norm(), name


def test_codes_at_follow_the_share_of_active_entries():
    for d_sae, form in {400: SparseCodes, 40: DenseCodes}.items():
        values, features, _ = top(12, d_sae, 4)
        assert isinstance(codes_at(values, features, d_sae), form)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_codes_on_cuda_are_those_of_the_matrix():
    values, features, f = top(300, 4000, 6, device="cuda")
    found = codes_at(values, features, 4000)
    assert isinstance(found, EvenCodes)
    assert isinstance(codes_at(*top(3, 2999, 6, device="cuda")[:2], 2999), DenseCodes)
    assert isinstance(codes_of(f), DenseCodes)
    exact = DenseCodes(f.double())
    rows, matrix = torch.randn(300, 64, device="cuda"), torch.randn(4000, 64, device="cuda")
    for product, expected in (
        (found.times(matrix), f.double() @ matrix.double()),
        (found.transposed_times(rows), f.double().T @ rows.double()),
        (found.feature_sums(), exact.feature_sums()),
        (found.firings(), exact.firings()),
        (
            found.where_active(rows, matrix, 0.5).transposed_times(rows),
            torch.where(f > 0, rows.double() @ matrix.double().T + 0.5, 0).T @ rows.double(),
        ),
    ):
        assert (product - expected).norm() < 1e-5 * expected.norm()
