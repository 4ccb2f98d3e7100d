import numpy as np
import pytest
from made_up_scores import rows, table

from papers.gated_sae.fronts import (
    AT_LEAST,
    AT_MOST,
    EXACT,
    METHODS,
    l0_ratios,
    ratio_numbers,
    select,
    summary_of_ratios,
)
from shared.metrics.fronts import Front


def made(l0, value):
    return Front(np.array(l0, dtype=float), np.array(value, dtype=float))


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


def test_no_two_methods_look_alike():
    seen = [(look.colour, look.marker) for look in METHODS.values()]
    assert len(set(seen)) == len(seen)
    assert len({look.label for look in METHODS.values()}) == len(METHODS)
