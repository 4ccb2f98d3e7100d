import numpy as np
import pytest
from pydantic import ValidationError

from papers.towards_monosemanticity.architectural_approaches import (
    EXPERIMENT,
    Parameters,
    closed_form,
    optimised,
)
from shared.experiment import Run


def test_the_closed_forms_are_those_of_the_paper():
    assert closed_form(1) == pytest.approx(0.75 * np.log(3))
    assert closed_form(2) == pytest.approx(np.log(2))
    assert closed_form(0) == closed_form(4) == pytest.approx(np.log(4))


@pytest.mark.parametrize("on", range(5))
def test_the_closed_form_is_the_entropy_of_the_class_given_the_neuron(on):
    joint = np.zeros((2, 4))
    joint[(np.arange(4) < on).astype(int), np.arange(4)] = 0.25
    given = joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)
    entropy = -(joint * np.log(np.where(given > 0, given, 1))).sum()
    assert closed_form(on) == pytest.approx(entropy)


def test_optimisation_approaches_the_closed_form_from_above():
    for on in (1, 2):
        losses = optimised(on, steps=60, restarts=2, seed=3)
        assert (losses >= closed_form(on) - 1e-12).all()
        assert losses.min() == pytest.approx(closed_form(on), abs=1e-4)
        np.testing.assert_array_equal(losses, optimised(on, steps=60, restarts=2, seed=3))


def test_the_best_neuron_stands_for_two_classes():
    config = Parameters(restarts=1, steps=40)
    arrays = EXPERIMENT.train(config, Run(0, "cpu"))
    evaluation = EXPERIMENT.evaluate(config, arrays)
    assert evaluation.metrics["best_number_of_classes"] == 2
    assert evaluation.metrics["polysemantic"] < evaluation.metrics["monosemantic"]
    assert set(evaluation.figures) == {figure.name for figure in EXPERIMENT.figures}


def test_a_poor_optimum_shows_as_a_gap():
    arrays = {"losses": np.array([[1.4], [0.9], [0.7], [0.83], [1.39]])}
    metrics = EXPERIMENT.evaluate(Parameters(restarts=1, steps=1), arrays).metrics
    assert metrics["largest_gap"] == pytest.approx(0.9 - 0.75 * np.log(3))


def test_no_steps_are_refused():
    with pytest.raises(ValidationError, match="steps"):
        Parameters(restarts=1, steps=0)
