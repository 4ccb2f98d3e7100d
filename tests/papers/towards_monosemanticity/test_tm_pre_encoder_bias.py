import numpy as np
import pytest
from made_up_dictionaries import SETTINGS, load_dictionary

from papers.towards_monosemanticity import dictionaries, loss_recovered
from papers.towards_monosemanticity.pre_encoder_bias import (
    EXPERIMENT,
    Parameters,
    mean_cosine,
    rarest,
    unit,
)
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(ultralow=0.02, tail=0.25)


@pytest.fixture(scope="module")
def losses(dictionaries_folder):
    config = loss_recovered.Parameters(contexts=12)
    return loss_recovered.EXPERIMENT.train(config, Run(0, "cpu", folder=dictionaries_folder))


@pytest.fixture(scope="module")
def arrays(dictionaries_folder, losses):
    return EXPERIMENT.train(CONFIG, Run(0, "cpu", {"loss_recovered": losses}, dictionaries_folder))


@pytest.fixture(scope="module")
def metrics(arrays):
    return EXPERIMENT.evaluate(CONFIG, arrays).metrics


def test_pairs_are_dictionaries_with_a_twin(arrays):
    assert arrays["pair"].tolist() == ["a0", "a1"]


def test_losses_are_those_of_the_two_dictionaries(metrics, losses):
    names = losses["name"].tolist()
    for kind, name in (("with", "a1"), ("without", "a1_unbiased")):
        place = names.index(name)
        assert metrics["a1"][kind]["fvu"] == losses["fvu"][place]
        objective = losses["mse"][place] + SETTINGS[name]["l1"] * losses["l1_norm"][place]
        assert metrics["a1"][kind]["objective"] == pytest.approx(objective)
    change = metrics["a1"]["without"]["objective"] - metrics["a1"]["with"]["objective"]
    assert metrics["a1"]["change"]["objective"] == pytest.approx(change)


def test_encoders_of_the_rarest_are_compared(arrays, metrics):
    tail = rarest(arrays["a1_with_counts"], 0.25)
    directions = unit(load_dictionary(None, "a1").W_enc.numpy())[tail]
    pairs = [directions[i] @ directions[j] for i in range(len(tail)) for j in range(i)]
    assert metrics["a1"]["with"]["cosine_of_rarest"] == pytest.approx(np.mean(pairs))


def test_the_mean_cosine_of_known_directions():
    east, north = np.eye(2)
    assert mean_cosine(np.stack([east, east, east])) == pytest.approx(1)
    assert mean_cosine(np.stack([east, north])) == pytest.approx(0)
    assert mean_cosine(np.stack([east, -east])) == pytest.approx(-1)
    assert np.isnan(mean_cosine(east[None]))


def test_the_rarest_are_the_share_that_fires_least():
    assert rarest(np.array([5, 0, 9, 1, 7, 3, 8, 2, 6, 4]), 0.3).tolist() == [1, 3, 7]


def test_directions_have_unit_length_also_of_nothing():
    directions = unit(np.array([[3.0, 0.0], [4.0, 0.0]]))
    np.testing.assert_allclose(directions, [[0.6, 0.8], [0, 0]])


def test_the_figure_has_a_row_per_pair(arrays):
    plotted = rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)["pre_encoder_bias"]
    with use_style():
        assert len(EXPERIMENT.figures[0].draw(plotted).axes) == 6


def test_without_twins_the_parameters_are_named(dictionaries_folder, losses, monkeypatch):
    monkeypatch.setattr(dictionaries, "settings", lambda folder: {"a0": SETTINGS["a0"]})
    with pytest.raises(UserError, match="_unbiased"):
        EXPERIMENT.train(CONFIG, Run(0, "cpu", {"loss_recovered": losses}, dictionaries_folder))
