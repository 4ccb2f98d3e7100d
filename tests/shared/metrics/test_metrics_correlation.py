import numpy as np
import pytest
from scipy.sparse import csc_matrix, hstack, random

from shared.errors import UserError
from shared.metrics.correlation import paired_pearson, pearson


def sparse(rows, columns, density, seed):
    return csc_matrix(random(rows, columns, density, random_state=seed, dtype=np.float32))


def corrcoef(left, right):
    both = np.corrcoef(left.toarray(), right.toarray(), rowvar=False)
    return both[: left.shape[1], left.shape[1] :]


@pytest.mark.parametrize("density", [0.05, 0.6])
def test_equals_corrcoef_of_numpy(density):
    left, right = sparse(400, 7, density, 0), sparse(400, 5, 0.3, 1)
    related = left.toarray()
    related[:, 2] = 2 * right.toarray()[:, 3] + 0.1 * related[:, 2]
    left = csc_matrix(related)
    np.testing.assert_allclose(pearson(left, right), corrcoef(left, right), atol=1e-7)


def test_a_column_correlates_with_itself():
    left = sparse(300, 6, 0.1, 0)
    np.testing.assert_allclose(np.diag(pearson(left, left)), 1, atol=1e-12)


def test_columns_that_do_not_vary_correlate_with_nothing():
    left = np.zeros((50, 3), dtype=np.float32)
    left[:, 0] = 0.3
    left[::7, 2] = 1
    found = pearson(csc_matrix(left), csc_matrix(left))
    np.testing.assert_allclose(found, np.diag([0, 0, 1.0]), atol=1e-12)


def test_empty_rows_that_are_no_observations_can_be_left_out():
    left, right = sparse(80, 4, 0.4, 0), sparse(80, 3, 0.4, 1)
    padding = csc_matrix((20, 4), dtype=np.float32), csc_matrix((20, 3), dtype=np.float32)
    padded = [
        csc_matrix(np.concatenate([matrix.toarray(), empty.toarray()]))
        for matrix, empty in zip((left, right), padding, strict=True)
    ]
    np.testing.assert_allclose(pearson(*padded, observations=80), corrcoef(left, right), atol=1e-7)


def test_rows_have_to_match():
    with pytest.raises(UserError, match="80 and 70"):
        pearson(sparse(80, 2, 0.5, 0), sparse(70, 2, 0.5, 0))


def test_pairs_are_the_diagonal():
    constant = csc_matrix((200, 1), dtype=np.float32)
    left, right = hstack([sparse(200, 3, 0.3, 0), constant], format="csc"), sparse(200, 4, 0.3, 1)
    found = paired_pearson(left, right, 150)
    np.testing.assert_allclose(found, np.diag(pearson(left, right, 150)), atol=1e-12)
    assert found[3] == 0
    with pytest.raises(UserError, match="one shape"):
        paired_pearson(left, right[:, :3])
