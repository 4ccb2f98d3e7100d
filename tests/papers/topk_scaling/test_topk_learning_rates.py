"""The best learning rate of losses that are parabolas."""

import numpy as np
import pytest
from made_up_autoencoders import SIZES, changed, leaves, metrics, without

from papers.topk_scaling.learning_rates import EXPERIMENT, best_rate

RATES = np.geomspace(1e-4, 3.2e-3, 6)


def parabola(row, exponent=-0.5):
    best = 1e-3 * (row["d_sae"] / 1024) ** exponent
    return 0.5 * np.exp(0.1 * np.log(row["lr"] / best) ** 2)


@pytest.mark.parametrize("exponent", [-0.5, -0.3, 0.2])
def test_the_law_is_recovered_exactly(exact_tables, exponent):
    exact = changed(exact_tables, "nmse", lambda row: parabola(row, exponent), group="lr")
    found = metrics(EXPERIMENT, exact)
    assert found["known"] == 5
    assert found["n"] == list(SIZES)
    assert found["slope"] == pytest.approx(exponent, abs=1e-4)
    assert found["best"] == pytest.approx([1e-3 * (n / 1024) ** exponent for n in SIZES], rel=1e-3)
    assert found["low"] <= found["slope"] <= found["high"]


def test_the_vertex_of_a_parabola():
    found = best_rate(RATES, 0.3 * np.exp(np.log(RATES / 7e-4) ** 2))
    assert found == pytest.approx((7e-4, 0.3, False))
    shuffled = np.random.default_rng(0).permutation(6)
    again = best_rate(RATES[shuffled], 0.3 * np.exp(np.log(RATES[shuffled] / 7e-4) ** 2))
    assert again == pytest.approx(found)


@pytest.mark.parametrize("at", [1e-5, 1e-2])
def test_a_minimum_at_the_end_of_the_sweep_is_not_known(at):
    found = best_rate(RATES, np.exp(np.log(RATES / at) ** 2))
    assert found.at_edge
    assert np.isnan([found.lr, found.nmse]).all()


def test_a_rate_beside_one_that_diverged_is_taken_as_it_is():
    nmse = np.array([0.9, 0.8, 0.7, np.nan, np.inf, np.nan])
    assert best_rate(RATES, nmse) == pytest.approx((RATES[2], 0.7, False))


def test_sweeps_without_a_minimum():
    assert best_rate(RATES, np.full(6, 0.5)).at_edge  # the first of equal losses is at the end
    middle = best_rate(RATES[:3], np.array([0.5, 0.4, 0.4]))
    assert RATES[1] < middle.lr < RATES[2]
    assert best_rate(RATES[:2], np.array([0.5, 0.4])).at_edge
    assert best_rate(RATES, np.full(6, np.nan)).at_edge
    assert best_rate(RATES[:0], RATES[:0]).at_edge


def test_sizes_at_the_end_of_the_sweep_are_left_out_of_the_slope(exact_tables):
    exact = changed(exact_tables, "nmse", parabola, group="lr")
    moved = changed(exact, "nmse", lambda row: row["lr"], group="lr", d_sae=256)
    found = metrics(EXPERIMENT, moved)
    assert found["at_edge"] == [1, 0, 0, 0, 0]
    assert found["best"][0] is None
    assert found["slope"] == pytest.approx(-0.5, abs=1e-4)
    for size in (512, 1024):
        moved = changed(moved, "nmse", lambda row: row["lr"], group="lr", d_sae=size)
    assert metrics(EXPERIMENT, moved)["slope"] is None


def test_degenerate_tables(smoke_tables):
    found = metrics(EXPERIMENT, smoke_tables)
    assert found["known"] == 0
    assert found["best"] == [None, None]
    assert not any(leaves(metrics(EXPERIMENT, without(smoke_tables))))
