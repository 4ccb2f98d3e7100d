import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from shared.metrics.fronts import (
    Front,
    compare,
    curve,
    curves,
    front,
    interval,
    lower_bound,
    matched,
    points,
    seeds_of,
)


def made(l0, value):
    return Front(np.array(l0, dtype=float), np.array(value, dtype=float))


def one_front(l0, value, method="gated", seed=0):
    return [
        {"method": method, "seed": seed, "l0": float(x), "recovered": float(y)}
        for x, y in zip(l0, value, strict=True)
    ]


def table(rows):
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def test_a_front_is_sorted_by_l0():
    found = front(table(one_front([30, 10, 20], [0.9, 0.7, 0.8])), "gated", 0)
    assert found.l0.tolist() == [10, 20, 30]
    assert found.value.tolist() == [0.7, 0.8, 0.9]


def test_a_front_leaves_out_what_has_no_place_on_it():
    found = front(
        table(one_front([10, 0, np.nan, 40, 80], [0.7, 0.1, 0.9, np.nan, 0.9])), "gated", 0
    )
    assert found.l0.tolist() == [10, 80]
    assert len(front(table(one_front([10], [0.7])), "baseline", 0).l0) == 0


def test_autoencoders_of_the_same_l0_are_averaged():
    found = front(table(one_front([10, 20, 10], [0.7, 0.9, 0.8])), "gated", 0)
    assert found.l0.tolist() == [10, 20]
    np.testing.assert_allclose(found.value, [0.75, 0.9])


def test_points_count_what_is_on_the_front():
    scores = table(
        one_front([10, 20], [0.7, np.nan]) + one_front([10, 20, 30], [0.1, 0.2, 0.3], seed=4)
    )
    assert points(scores, "gated") == [1, 3]
    assert points(scores, "topk") == []
    assert seeds_of(scores, ["gated", "topk"]) == (0, 4)


def test_interpolation_is_linear_in_log_l0():
    found = matched([made([1, 100], [0, 1]), made([1, 10, 100], [5, 5, 5])])
    assert found.l0.tolist() == [1, 10, 100]
    np.testing.assert_allclose(found.values[0], [0, 0.5, 1])


def test_nothing_is_extrapolated():
    found = matched([made([1, 10], [0, 1]), made([5, 100], [0, 1])])
    assert found.l0.tolist() == [5, 10]


def test_disjoint_ranges_give_nan():
    found = matched([made([1, 10], [0, 1]), made([11, 100], [0, 1])])
    assert len(found.l0) == 0
    assert np.isnan(found.means()).all()


def test_ranges_that_touch_are_compared_where_they_do():
    found = matched([made([1, 10], [0, 1]), made([10, 100], [3, 9])])
    assert found.means().tolist() == [1, 3]


def test_a_front_without_points_gives_nan():
    assert np.isnan(matched([made([1, 10], [0, 1]), made([], [])]).means()).all()


def test_the_mean_is_that_of_a_fine_grid():
    one, other = made([2, 7, 30], [0.1, 0.6, 0.4]), made([1, 5, 40], [0.2, 0.3, 0.9])
    grid = np.exp(np.linspace(np.log(2), np.log(30), 100_001))
    fine = np.interp(np.log(grid), np.log(one.l0), one.value).mean()
    assert matched([one, other]).means()[0] == pytest.approx(fine, abs=1e-4)


def test_identical_fronts_have_no_gap():
    x, y = [5, 20, 60], [0.5, 0.8, 0.9]
    found = compare(table(one_front(x, y) + one_front(x, y, "topk")), ("gated", "topk"))
    assert found.gap("gated", "topk").tolist() == [0]
    assert found.least_gap("gated", "topk").tolist() == [0]
    assert found.greatest_distance("gated", "topk").tolist() == [0]
    assert found.bounds()["span"].tolist() == [12]


def test_the_least_gap_is_found_between_the_points_of_a_front():
    ours, theirs = one_front([1, 100], [0.5, 0.5]), one_front([1, 10, 100], [0, 0.6, 0], "topk")
    found = compare(table(ours + theirs), ("gated", "topk"))
    assert found.least_gap("gated", "topk")[0] == pytest.approx(-0.1)
    assert found.greatest_distance("gated", "topk")[0] == pytest.approx(0.5)
    assert found.gap("gated", "topk")[0] == pytest.approx(0.2)


def test_a_seed_that_one_method_lacks_is_nan_and_not_left_out():
    x, y = [5, 20, 60], [0.5, 0.8, 0.9]
    scores = table([*one_front(x, y), *one_front(x, y, seed=1), *one_front(x, y, "topk")])
    found = compare(scores, ("gated", "topk"))
    assert found.seeds == (0, 1)
    np.testing.assert_array_equal(found.gap("gated", "topk"), [0, np.nan])
    np.testing.assert_array_equal(found.bounds()["low"], [5, np.nan])
    assert np.isnan(lower_bound(found.gap("gated", "topk")))


def test_the_interval_is_students():
    values = np.array([0.3, 0.1, 0.25, 0.4])
    found = interval(values)
    low, high = t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    assert found["low"] == pytest.approx(low)
    assert found["high"] == pytest.approx(high)
    assert np.isnan(interval(values[:1])["low"])
    assert np.isnan(interval(values[:0])["mean"])


def test_the_lower_bound_is_one_sided_and_needs_three_seeds():
    values = np.array([0.3, 0.1, 0.25])
    one_sided = ttest_1samp(values, 0, alternative="greater").confidence_interval(0.95)
    assert lower_bound(values) == pytest.approx(one_sided.low)
    assert np.isnan(lower_bound(values[:2]))


def test_a_band_reaches_from_the_least_to_the_greatest_seed():
    scores = table(one_front([10, 20], [0.5, 0.7]) + one_front([10, 20], [0.6, 0.7], seed=1))
    found = curve(scores, "gated")
    assert found["l0"].tolist() == [10, 20, 10, 20]
    assert found["band"]["low"].tolist() == [0.5, 0.7]
    assert found["band"]["high"].tolist() == [0.6, 0.7]
    np.testing.assert_allclose(found["band"]["mean"], [0.55, 0.7])


def test_a_method_that_is_absent_has_no_curve():
    assert set(curves(table(one_front([10], [0.5])), ("gated", "topk"))) == {"gated"}
