import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from papers.topk_scaling.logistic_search import (
    CHANCE,
    TOLERANCE,
    Best,
    Points,
    best_latents,
    class_weights,
    cross_entropy,
    fit,
    lower_bounds,
    tokens_of,
)

ROWS, LATENTS, TASKS = 400, 60, 5


def points(z, y, weight):
    rows = (
        np.atleast_2d(np.asarray(part, dtype=float)) for part in (z, np.where(y, 1, -1), weight)
    )
    return Points(*(torch.from_numpy(part) for part in rows))


def by_sklearn(z, y, weight):
    """The least loss by another library, which takes no separable classes."""
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    model.fit(z[:, None], y, sample_weight=weight * len(y))
    p = model.predict_proba(z[:, None])[:, 1]
    return float(model.coef_[0, 0]), float(log_loss(y, p, sample_weight=weight) * weight.sum())


def sparse(seed=0, rows=ROWS, latents=LATENTS, tasks=TASKS):
    """Latents of all densities, some dead, one constant, one the task itself; rare labels too."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0, 0.01, 0.05, 0.5, 1], latents)
    z = rng.exponential(1, (rows, latents)) * (rng.random((rows, latents)) < density)
    hidden = z @ rng.standard_normal((latents, tasks)) + rng.standard_normal((rows, tasks))
    shares = rng.uniform(0.3, 0.98, tasks)
    y = hidden > [np.quantile(h, q) for h, q in zip(hidden.T, shares, strict=True)]
    z[:, 0], z[:, 1] = 2.0, y[:, 0] * rng.uniform(1, 2, rows)
    return csc_array(z), y


def every_loss(z, y):
    """The loss of every latent for every task, on all rows and without bounds."""
    true, false = class_weights(y)
    return np.array(
        [
            [
                float(fit(points(column, y[:, t], np.where(y[:, t], true[t], false[t]))).loss)
                for t in range(y.shape[1])
            ]
            for column in z.toarray().T
        ]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_fit_is_that_of_sklearn(seed, scale):
    rng = np.random.default_rng(seed)
    z = rng.exponential(1, 500) * (rng.random(500) < 0.3)
    y = rng.random(500) < 1 / (1 + np.exp(1 - 2 * z))
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    w, loss = by_sklearn(z, y, weight)
    found = fit(points(scale * z, y, weight))
    assert float(found.loss) == pytest.approx(loss, abs=1e-6)
    assert float(found.w) * scale == pytest.approx(w, rel=0.02)


def test_many_fits_at_once_are_each_that_of_its_own():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((2, 6, 50))
    together = fit(points(z, y > 0, np.full((6, 50), 1 / 50)))
    for row in range(6):
        alone = fit(points(z[row], y[row] > 0, np.full(50, 1 / 50)))
        for both, one in zip(together, alone, strict=True):
            assert float(both[row]) == pytest.approx(float(one[0]), abs=1e-9)


def test_points_without_weight_do_not_count():
    z, y = np.array([0.0, 1, 2, 9]), np.array([False, True, False, True])
    with_, without = np.array([1, 1, 1, 0.0]) / 3, np.full(3, 1 / 3)
    found, expected = fit(points(z, y, with_)), fit(points(z[:3], y[:3], without))
    assert float(found.loss) == pytest.approx(float(expected.loss), abs=TOLERANCE)


@pytest.mark.parametrize("high", [1e-3, 1.0, 1e3])
def test_separable_classes_have_no_loss_and_finite_weights(high):
    found = fit(points([0, 0, high, 2 * high], [False, False, True, True], np.full(4, 0.25)))
    assert 0 <= float(found.loss) < TOLERANCE
    assert np.isfinite(float(found.w))
    assert np.isfinite(float(found.b))


def test_a_latent_of_one_class_leaves_the_entropy_of_inactive_rows():
    """The infimum in closed form: active rows are certain, the others all the same."""
    z, y = np.array([0, 0, 0, 0, 3, 5.0]), np.array([True, False, False, False, True, True])
    inactive = 4 / 6 * -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    found = fit(points(z, y, np.full(6, 1 / 6)))
    assert inactive <= float(found.loss) < inactive + TOLERANCE


def test_a_large_offset_does_not_hide_what_varies():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal(200), np.arange(200) < 60
    z += y
    weight = np.full(200, 1 / 200)
    expected, found = (float(fit(points(z + shift, y, weight)).loss) for shift in (0, 1000))
    assert found == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_a_latent_that_does_not_vary_says_nothing(value):
    y = np.array([True, True, False])
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    found = fit(points(np.full(3, value), y, np.full(3, 1 / 3)))
    assert float(found.loss) == pytest.approx(entropy, abs=1e-6)


def test_a_rare_strong_latent_is_not_overshot():
    """Newton's full step would leave for infinity here."""
    z = np.concatenate([np.zeros(10_000), [1e3, 1.1e3, 1e-3]])
    y = np.concatenate([np.arange(10_000) < 3, [True, False, True]])
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    _, loss = by_sklearn(z / 1e3, y, weight)
    assert float(fit(points(z, y, weight)).loss) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("bins", [1, 3, 16])
def test_no_latent_is_better_than_its_bound(bins):
    z, y = sparse()
    bounds, losses = lower_bounds(z, y, bins), every_loss(z, y)
    assert bounds.shape == (LATENTS, TASKS)
    assert (bounds <= losses + TOLERANCE).all()


def test_more_bins_bound_more_tightly():
    z, y = sparse(1)
    losses = every_loss(z, y)
    slack = [(losses - lower_bounds(z, y, bins)).mean() for bins in (1, 4, 16, 64)]
    assert slack == sorted(slack, reverse=True)
    assert slack[-1] < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bins", [1, 8])
def test_the_search_finds_the_best_of_all_latents(seed, bins):
    z, y = sparse(seed)
    losses = every_loss(z, y)
    found = best_latents(z, y, bins)
    np.testing.assert_allclose(found.loss, losses.min(0), atol=2 * TOLERANCE)
    chosen = losses[found.latent, np.arange(TASKS)]
    np.testing.assert_allclose(chosen, losses.min(0), atol=2 * TOLERANCE)
    assert (found.loss <= CHANCE + TOLERANCE).all()


def test_the_search_works_for_dense_signed_directions():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 12))
    y = x[:, [3, 7]] + rng.standard_normal((300, 2)) > 0.5
    z = csc_array(x)
    found = best_latents(z, y)
    assert found.latent.tolist() == [3, 7]
    np.testing.assert_allclose(found.loss, every_loss(z, y).min(0), atol=2 * TOLERANCE)


def test_latents_that_are_all_dead_are_at_chance():
    found = best_latents(csc_array((6, 3)), np.array([[True], [False]] * 3))
    np.testing.assert_allclose(found.loss, CHANCE)


def test_inactive_rows_are_two_points():
    z, y = sparse()
    losses = every_loss(z, y)
    latents = np.arange(LATENTS)
    found = fit(tokens_of(z, y, latents, np.full(LATENTS, 2)))
    np.testing.assert_allclose(found.loss, losses[:, 2], atol=TOLERANCE)


def test_classes_weigh_half_each():
    true, false = class_weights(np.array([[True], [False], [False], [False]]))
    assert true.tolist() == [0.5]
    np.testing.assert_allclose(false, [1 / 6])


@pytest.mark.parametrize("label", [True, False])
def test_a_task_of_one_class_is_refused(label):
    with pytest.raises(ValueError, match="both classes"):
        best_latents(csc_array((3, 2)), np.full((3, 1), label))


def test_the_loss_on_other_rows_is_that_of_sklearn():
    z, y = sparse()
    best = best_latents(z, y)
    other, labels = sparse(1)
    activations = other.toarray()[:, best.latent]
    found = cross_entropy(activations, labels, best, 10**9)
    for task in range(TASKS):
        p = 1 / (1 + np.exp(-(best.w[task] * activations[:, task] + best.b[task])))
        true = labels[:, task]
        weight = np.where(true, 1 / true.sum(), 1 / (~true).sum())
        p = np.clip(p, 1e-9, 1 - 1e-9)
        expected = log_loss(true, p, sample_weight=weight)
        assert found[task] == pytest.approx(expected, rel=1e-6)


def test_the_loss_on_the_rows_of_the_fit_is_its_own():
    z, y = sparse(2)
    best = best_latents(z, y)
    found = cross_entropy(z.toarray()[:, best.latent], y, best, 10**9)
    np.testing.assert_allclose(found, best.loss, atol=1e-6)


def test_no_prediction_is_surer_than_its_rows_allow():
    sure = Best(np.array([0]), np.array([1e6]), np.array([-1e3]), np.array([0.0]))
    z, y = np.array([[1.0], [0.0]]), np.array([[False], [True]])
    assert cross_entropy(z, y, sure, 98)[0] == pytest.approx(np.log(100))
