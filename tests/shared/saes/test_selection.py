import pytest
import torch

from shared.saes.selection import GROUP_SIZES, GROUPS_PER_ENTRY, top_k


def entries(batch, d, dtype=torch.float32, seed=0):
    return torch.randn(batch, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_largest(z, k):
    values, places = top_k(z, k)
    expected = torch.topk(z, k, dim=1).values
    assert torch.equal(values.sort(1, descending=True).values, expected)
    assert torch.equal(z.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "k"), [(256, 1), (512, 8), (256, 16), (1024, 33), (96, 96), (7, 2)])
def test_the_entries_of_torch_topk(d, k, dtype):
    assert_largest(entries(50, d, dtype), k)


def test_both_ways_are_tested():
    assert min(GROUP_SIZES) * GROUPS_PER_ENTRY * 16 <= 256
    assert min(GROUP_SIZES) * GROUPS_PER_ENTRY * 96 > 96


def test_of_equal_entries_no_more_than_k():
    assert_largest(entries(50, 256).mul(2).round(), 8)
    assert_largest(torch.zeros(3, 256), 5)
    assert_largest(torch.arange(256.0).repeat(2, 1), 4)
    assert_largest(entries(5, 256).clamp_max(0), 7)


def test_infinite_entries():
    z = entries(4, 256)
    z[0, 200] = torch.inf
    z[1] = -torch.inf
    z[2, 5:] = -torch.inf
    assert_largest(z, 8)


def test_what_is_not_a_number_counts_as_largest():
    z = entries(4, 256)
    z[2, 17] = torch.nan
    assert top_k(z, 3)[0].isnan().sum(1).tolist() == [0, 0, 1, 0]


def test_no_rows():
    values, places = top_k(torch.zeros(0, 256), 4)
    assert values.shape == places.shape == (0, 4)
