import json

import numpy as np
import pytest

from papers.topk_scaling.downstream import EXPERIMENT, Parameters, power_law
from papers.topk_scaling.pareto import OTHERS
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded


def metrics_of(tables):
    arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", tables))
    return EXPERIMENT.evaluate(Parameters(), dict(arrays)).metrics


def test_a_power_law_is_fitted_exactly():
    nmse = np.array([0.1, 0.2, 0.35, 0.5])
    found = power_law(nmse, 3 * nmse**1.4)
    assert found.exponent == pytest.approx(1.4)
    assert found.factor == pytest.approx(3)
    assert found.r_squared == pytest.approx(1)
    assert found.points == 4


def test_r_squared_is_the_share_of_log_variance():
    generator = np.random.default_rng(0)
    nmse = generator.uniform(0.1, 0.5, 30)
    measure = nmse * np.exp(generator.normal(size=30))
    found = power_law(nmse, measure)
    predicted = np.log(found.factor * nmse**found.exponent)
    y = np.log(measure)
    rest = ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert found.r_squared == pytest.approx(1 - rest)


def test_two_points_are_no_law_and_losses_that_fall_do_not_count():
    assert np.isnan(power_law(np.array([0.1, 0.2]), np.array([1.0, 2.0])).r_squared)
    found = power_law(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, -0.1, 0.3, 0.4]))
    assert found.points == 3
    assert found.exponent == pytest.approx(1)


def test_the_law_of_the_made_up_scores_is_found_at_every_k(exact_tables):
    found = metrics_of(exact_tables)["power_law"]
    assert found["k"].tolist() == [4, 8, 16, 32, 64]
    assert min(found["ce"]["r_squared"]) > 0.99
    np.testing.assert_allclose(found["ce"]["exponent"], found["kl"]["exponent"])
    assert found["ce"]["points"] == [5] * 5


def test_an_advantage_to_the_power_is_larger(exact_tables):
    """ΔCE goes with the power 1.3 of nMSE there, but for what was not learned to the end."""
    found = metrics_of(exact_tables)
    for other in OTHERS:
        error, rise = found[other]["nmse"]["ratio"], found[other]["ce"]["ratio"]
        np.testing.assert_allclose(rise, error**1.3, rtol=0.01)
        np.testing.assert_allclose(found[other]["kl"]["ratio"], rise)


def test_without_scores_there_is_nothing(exact_tables):
    nothing = {"scores": {key: values[:0] for key, values in exact_tables["scores"].items()}}
    found = metrics_of(nothing)
    assert found["power_law"]["ce"]["r_squared"] == []
    assert len(found["relu"]["ce"]["ratio"]) == 0


def test_the_figure_draws_from_what_json_keeps(tables, smoke_tables):
    for run in (tables, smoke_tables):
        arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", run))
        plots = json.loads(json.dumps(rounded(EXPERIMENT.evaluate(Parameters(), arrays).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["downstream"])
            figure.canvas.draw()
            assert len(figure.axes) == 3
