import json

import numpy as np
import pytest

from papers.topk_scaling.recipe import EXPERIMENT, PAPER, Parameters, layer_of
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded


def evaluated(scores):
    arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", {"scores": scores}))
    return EXPERIMENT.evaluate(Parameters(), dict(arrays))


def changed(scores, column, factor, **conditions):
    rows = np.ones(len(scores["name"]), dtype=bool)
    for key, value in conditions.items():
        rows &= scores[key] == value
    assert rows.any()
    return {**scores, column: np.where(rows, factor * scores[column], scores[column])}


def test_a_variant_is_measured_by_the_whole_recipe(exact_tables):
    worse = changed(exact_tables["scores"], "nmse", 1.1, group="recipe", variant="no_ema")
    found = evaluated(worse).metrics["variants"]
    assert found["no_ema"]["relative"] == pytest.approx(0.1)
    assert found[PAPER]["relative"] == 0
    assert found["clipped"]["relative"] == pytest.approx(0)


def test_layers_are_in_order(exact_tables):
    scores = changed(exact_tables["scores"], "nmse", 2, group="layers", site="blocks.3.resid_post")
    found = evaluated(scores).metrics["layers"]
    assert found["layer"] == [0, 1, 2, 3]
    assert found["nmse"][3] == pytest.approx(2 * found["nmse"][0])
    assert layer_of("blocks.11.resid_post") == 11


def test_without_the_whole_recipe_nothing_is_compared(exact_tables):
    scores = exact_tables["scores"]
    keep = scores["variant"] != PAPER
    found = evaluated({key: values[keep] for key, values in scores.items()}).metrics["variants"]
    assert PAPER not in found
    assert np.isnan(found["clipped"]["relative"])


def test_without_scores_there_is_nothing(exact_tables):
    nothing = {key: values[:0] for key, values in exact_tables["scores"].items()}
    found = evaluated(nothing).metrics
    assert found["variants"] == {}
    assert found["layers"]["nmse"] == []


def test_the_figure_draws_from_what_json_keeps(tables, smoke_tables):
    for run in (tables, smoke_tables):
        plots = json.loads(json.dumps(rounded(evaluated(run["scores"]).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["recipe"])
            figure.canvas.draw()
            assert len(figure.axes) == 3
