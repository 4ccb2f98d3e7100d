import numpy as np
import pytest
from made_up_scores import entry, rows, table
from scipy.stats import t, ttest_1samp

from papers.gated_sae.fronts import (
    AT_LEAST,
    AT_MOST,
    EXACT,
    METHODS,
    Front,
    compare,
    curve,
    curves,
    front,
    interval,
    l0_ratios,
    lower_bound,
    matched,
    points,
    ratio_numbers,
    seeds_of,
    select,
    summary_of_ratios,
)


def made(l0, value):
    return Front(np.array(l0, dtype=float), np.array(value, dtype=float))


def one_front(l0, value, method="gated", seed=0):
    return [
        entry("m", "s.0", method, seed, place + 1, l0=float(x), recovered=float(y))
        for place, (x, y) in enumerate(zip(l0, value, strict=True))
    ]


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


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.5])
def test_a_front_shifted_in_l0_gives_its_ratio(factor):
    l0, value = np.array([5, 11, 40, 90.0]), np.array([0.5, 0.7, 0.85, 0.9])
    found = l0_ratios(made(factor * l0, value), made(l0, value))
    np.testing.assert_allclose(found.ratio, factor)
    assert found.kind == [EXACT] * 4
    assert summary_of_ratios([found])["median"] == pytest.approx(factor)


def test_the_ratio_is_interpolated_in_log_l0():
    found = l0_ratios(made([10, 1000], [0.5, 0.7]), made([20, 50], [0.6, 0.7]))
    np.testing.assert_allclose(found.ratio, [5, 20])
    assert found.level.tolist() == [0.6, 0.7]


def test_recovery_that_the_baseline_never_reaches_gives_a_lower_bound():
    found = l0_ratios(made([10, 60], [0.5, 0.7]), made([20, 50, 90], [0.71, 0.8, 0.9]))
    np.testing.assert_allclose(found.ratio, [3, 1.2])
    assert found.kind == [AT_LEAST] * 2
    assert found.without == 1  # at L0 90 it would say "at least 0.67"


def test_recovery_below_the_baselines_sparsest_gives_an_upper_bound():
    found = l0_ratios(made([10, 60], [0.5, 0.7]), made([5, 20], [0.3, 0.4]))
    np.testing.assert_allclose(found.ratio, [0.5])
    assert found.kind == [AT_MOST]
    assert found.without == 1  # at L0 5 it would say "at most 2"


def test_without_a_baseline_nothing_is_compared():
    found = l0_ratios(made([], []), made([5, 20], [0.3, 0.4]))
    assert found.without == 2
    summary = summary_of_ratios([found])
    assert np.isnan(summary["median"])
    assert np.isnan(summary["from_2"])
    assert np.isnan(summary_of_ratios([])["least"])


def test_a_summary_counts_kinds_and_shares():
    found = l0_ratios(made([10, 60], [0.5, 0.7]), made([5, 20, 50], [0.5, 0.71, 0.8]))
    summary = summary_of_ratios([found, found])
    assert (summary[EXACT], summary[AT_LEAST], summary[AT_MOST], summary["without"]) == (2, 4, 0, 0)
    assert summary["median"] == 2
    assert summary["from_1_5"] == pytest.approx(4 / 6)
    assert summary["from_2"] == pytest.approx(4 / 6)
    assert summary["least"] == pytest.approx(1.2)


def test_the_papers_numbers_are_not_among_ours():
    found = l0_ratios(made([10, 20], [0.5, 0.7]), made([10, 20], [0.5, 0.7]))
    assert ratio_numbers([found])["median"] == 1
    assert "paper" not in summary_of_ratios([found])


def test_selection_is_by_method_model_and_site():
    scores = table(rows())
    scores["run"] = np.array("{}")
    found = select(scores, ("gated", "sae_lens_*"), "one_layer_a", ("*",))
    assert set(found["method"]) == {
        *("gated", "sae_lens_gated", "sae_lens_unit_norm", "sae_lens_betas"),
    }
    assert set(found["model"]) == {"one_layer_a"}
    assert set(select(scores, ("gated",), "mini_gpt2", ("mlp_out.*",))["site"]) == {
        f"mlp_out.{layer}" for layer in range(4)
    }
    assert len(select(scores, ("gated",), "gpt2", ("*",))["name"]) == 0


def test_a_band_reaches_from_the_least_to_the_greatest_seed():
    scores = table(one_front([10, 20], [0.5, 0.7]) + one_front([10, 20], [0.6, 0.7], seed=1))
    found = curve(scores, "gated")
    assert found["l0"].tolist() == [10, 20, 10, 20]
    assert found["band"]["low"].tolist() == [0.5, 0.7]
    assert found["band"]["high"].tolist() == [0.6, 0.7]
    np.testing.assert_allclose(found["band"]["mean"], [0.55, 0.7])


def test_a_method_that_is_absent_has_no_curve():
    assert set(curves(table(one_front([10], [0.5])), ("gated", "topk"))) == {"gated"}


def test_no_two_methods_look_alike():
    seen = [(look.colour, look.marker) for look in METHODS.values()]
    assert len(set(seen)) == len(seen)
    assert len({look.label for look in METHODS.values()}) == len(METHODS)
