import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.sparse import csc_matrix

from papers.towards_monosemanticity import context_features
from papers.towards_monosemanticity.dictionaries import load_dictionary
from papers.towards_monosemanticity.examples import Text
from papers.towards_monosemanticity.firings import load_split
from papers.towards_monosemanticity.not_a_neuron import EXPERIMENT, TOP, Parameters, top_rows
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(rare=1, cells=5)


@pytest.fixture
def arrays(folder):
    inputs = context_features.EXPERIMENT.train(
        context_features.Parameters(resamples=10, rare=1), Run(0, "cpu", folder=folder)
    )
    run = Run(0, "cpu", {"context_features": inputs}, folder)
    return {**EXPERIMENT.train(CONFIG, run), "chosen": inputs["arabic_features"]}


def test_the_features_are_compared_with_the_neurons_that_come_closest(folder, arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics["arabic"]
    feature = int(arrays["chosen"][0])
    coefficients = load_dictionary(folder, "a1").W_dec[feature].numpy()
    assert metrics["neurons"]["by_coefficient"] == coefficients.argmax()
    assert metrics["large_coefficients"] == (np.abs(coefficients) >= 0.1).sum()
    assert abs(metrics["largest_coefficients"][0]) == pytest.approx(np.abs(coefficients).max())
    select, score = load_split(folder, "select"), load_split(folder, "score")
    activity = select.features("a1")[:, [feature]].toarray().ravel()
    r = np.corrcoef(select.neurons("a").toarray().T, activity)[-1, :-1]
    # Rows of position 0 are zero everywhere and no observations; the order may only change by them.
    assert r[metrics["neurons"]["by_feature"]] > np.sort(r)[-3]
    neuron = score.neurons("a")[:, [metrics["neurons"]["by_proxy"]]].toarray().ravel()
    assert metrics["neuron_purity"] == pytest.approx((score.flat_labels[neuron > 0] == 2).mean())
    assert metrics["feature_correlation"] > 0.3 > metrics["neuron_correlation"]["by_proxy"]
    assert metrics["top_20_of_feature"] > metrics["top_20_of_neuron"]
    assert 0 <= metrics["neuron_logit_auc"] <= 1


def test_the_top_rows_are_the_strongest_of_each_context():
    values = np.zeros((6, 2), dtype=np.float32)
    values[[1, 2, 4], 0] = [1, 5, 3]
    found = top_rows(csc_matrix(values), Text(np.zeros(6, dtype=np.uint16), length=3))
    assert found.shape == (2, TOP)
    assert found[0].tolist() == [2, 4] + [-1] * (TOP - 2)
    assert (found[1] == -1).all()


def test_the_figure_is_drawn_from_rounded_numbers(arrays):
    plots = rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)
    with use_style():
        assert isinstance(EXPERIMENT.figures[0].draw(plots["not_a_neuron"]), Figure)
