"""The least loss at a budget of compute, where it is known."""

import numpy as np
import pytest
from made_up_autoencoders import K, changed, leaves, metrics, without

from papers.topk_scaling.compute_frontier import EXPERIMENT, Training, flops, frontier
from papers.topk_scaling.scaling_fits import Curve

SETTINGS = {"k": K, "d_in": 256}


def straight(n, start, end, factor, exponent):
    compute = np.geomspace(start, end, 30)
    return Training(n, Curve(compute, factor * compute**-exponent))


def test_the_cost_of_a_step_is_one_dense_product_and_four_sparse_ones():
    assert flops(1000, 32, 256) == 2 * 256 * 1000 + 4 * (2 * 256 * 32)


def test_the_frontier_is_the_lower_one_of_two_lines():
    found = frontier([straight(1, 1, 1e4, 1, 0.1), straight(2, 10, 1e5, 2, 0.2)], 50)
    assert (found.compute[0], found.compute[-1]) == pytest.approx((10, 1e4))
    expected = np.minimum(found.compute**-0.1, 2 * found.compute**-0.2)
    assert np.allclose(found.nmse, expected)
    crossing = 2**10
    assert (found.n == np.where(found.compute < crossing, 1, 2)).all()
    assert found.forced == 0


def test_a_change_because_training_ended_is_counted():
    better_but_short = straight(1, 1, 100, 1, 0.1)
    runs = [better_but_short, straight(2, 1, 1e4, 3, 0.1), straight(3, 1, 1e4, 4, 0.1)]
    found = frontier(runs, 50)
    assert found.forced == 1
    assert set(found.n) == {1, 2}


def test_one_size_or_no_common_budget_is_no_frontier():
    assert len(frontier([straight(1, 1, 10, 1, 0.1)] * 2, 10).nmse) == 0
    assert len(frontier([], 10).nmse) == 0
    apart = [straight(1, 1, 10, 1, 0.1), straight(2, 100, 1000, 1, 0.1)]
    assert len(frontier(apart, 10).nmse) == 0


def test_a_law_with_a_floor_is_told_from_one_without(exact_tables):
    """Every history lies on 0.3 + 100 C^−0.3 of its own compute, so that the frontier does."""
    table = dict(exact_tables["autoencoders"])
    sizes = zip(table["d_sae"].tolist(), table["penalty"].tolist(), strict=True)
    cost = np.array([flops(n, int(k), 256) for n, k in sizes])
    compute = table["history_vectors"] * cost[:, None]
    found = metrics(
        EXPERIMENT,
        {"autoencoders": table | {"history_nmse": 0.3 + 100 * compute**-0.3}},
        **SETTINGS,
    )
    assert found["with_floor"]["floor"] == pytest.approx(0.3, abs=0.01)
    assert found["with_floor"]["exponent"] == pytest.approx(0.3, abs=0.01)
    assert found["with_floor"]["r_squared"] > 0.9999
    assert found["with_floor"]["held_out"]["max"] < 0.005
    assert found["without_floor"]["held_out"]["median"] > 0.01
    assert found["with_floor"]["exponent_without_each_n"] == pytest.approx([0.3] * 5, abs=0.02)


def test_larger_autoencoders_win_at_larger_budgets(tables):
    found = metrics(EXPERIMENT, tables, **SETTINGS)
    assert found["sizes"] == found["sizes_on_frontier"] == 5
    assert found["with_floor"]["exponent"] > 0
    assert found["forced_changes"] == 0


def test_a_diverged_training_is_not_on_the_frontier(tables):
    holed = changed(tables, "history_nmse", lambda _: np.nan, d_sae=256)
    found = metrics(EXPERIMENT, holed, **SETTINGS)
    assert found["sizes"] == 5
    assert found["sizes_on_frontier"] == 4


def test_degenerate_tables(smoke_tables):
    assert metrics(EXPERIMENT, smoke_tables, k=4, d_in=256)["sizes"] == 2
    nothing = metrics(EXPERIMENT, without(smoke_tables), **SETTINGS)
    assert not any(leaves(nothing))
    one_size = metrics(EXPERIMENT, without(smoke_tables, d_sae=128), k=4, d_in=256)
    assert one_size["with_floor"]["exponent"] is None
