import json

import numpy as np
import pytest

from papers.topk_scaling.pareto import (
    EXPERIMENT,
    LOOKS,
    Parameters,
    logarithm,
    ratio_lines,
    versus,
)
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded


def made(ratio=1.25, exponent=0.5, shift=1.0, seeds=3):
    """TopK's nMSE is a power law of L0, ReLU's is so many times as large, at other L0."""
    l0 = 2.0 ** np.arange(2, 7)
    parts = []
    for seed in range(seeds):
        for method, x, factor in (("topk", l0, 1.0), ("relu", shift * l0, ratio)):
            parts += [(method, seed, at, factor * (1 + 0.01 * seed) * at**-exponent) for at in x]
    method, seed, l0, nmse = (np.array(column) for column in zip(*parts, strict=True))
    return {"method": method, "seed": seed, "l0": l0, "nmse": nmse}


def metrics_of(tables):
    arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", tables))
    return EXPERIMENT.evaluate(Parameters(), dict(arrays)).metrics


def test_what_has_no_logarithm_is_nan():
    np.testing.assert_array_equal(logarithm(np.array([1, 0, -1, np.nan])), [0] + [np.nan] * 3)


@pytest.mark.parametrize("shift", [1.0, 1.3, 3.0])
def test_power_laws_are_compared_exactly_between_their_points(shift):
    found = versus(made(shift=shift), "topk", "relu", "nmse")
    for key in ("ratio", "least", "greatest"):
        np.testing.assert_allclose(found[key], [0.8] * 3)
    np.testing.assert_allclose(found["distance"], 0.2)
    assert found["interval"] == pytest.approx({"mean": 0.8, "low": 0.8, "high": 0.8})
    np.testing.assert_allclose(found["topk"] / found["relu"], found["ratio"])


def test_one_point_that_is_worse_shows_in_the_extremes_only():
    table = made()
    bad = (table["method"] == "topk") & (table["l0"] == 16) & (table["seed"] == 1)
    table["nmse"] = np.where(bad, 2 * table["nmse"], table["nmse"])
    found = versus(table, "topk", "relu", "nmse")
    np.testing.assert_allclose(found["greatest"], [0.8, 1.6, 0.8])
    np.testing.assert_allclose(found["least"], 0.8)
    np.testing.assert_allclose(found["distance"], [0.2, 0.6, 0.2])
    assert found["ratio"][1] < 1


def test_fronts_that_do_not_meet_are_not_compared():
    found = versus(made(shift=100), "topk", "relu", "nmse")
    assert all(np.isnan(found[key]).all() for key in ("ratio", "greatest", "distance"))


def test_the_lines_are_the_inverse_of_the_ratio():
    for line in ratio_lines(made(shift=1.3), "relu", "topk", "nmse"):
        np.testing.assert_allclose(line["ratio"], 1.25)


def test_the_made_up_order_is_found(exact_tables):
    found = metrics_of(exact_tables)
    assert found["points"] == {method: [5] * 3 for method in LOOKS}
    assert found["relu"]["greatest"].max() < found["prolu"]["least"].min() < 1
    assert found["gated"]["distance"].max() < 0.05
    assert found["batchtopk"]["least"].min() > 1


def test_without_scores_there_is_nothing(exact_tables):
    nothing = {"scores": {key: values[:0] for key, values in exact_tables["scores"].items()}}
    found = metrics_of(nothing)
    assert found["points"]["topk"] == []
    assert len(found["relu"]["ratio"]) == 0


def test_the_figure_draws_from_what_json_keeps(tables, smoke_tables):
    for run in (tables, smoke_tables):
        arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", run))
        plots = json.loads(json.dumps(rounded(EXPERIMENT.evaluate(Parameters(), arrays).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["pareto"])
            figure.canvas.draw()
            assert len(figure.axes) == 2


def test_no_two_methods_look_alike():
    assert len({(look.colour, look.marker) for look in LOOKS.values()}) == len(LOOKS)
