import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from papers.gated_sae.activation_shapes import (
    EXPERIMENT,
    OFF_MEAN,
    OFF_STD,
    ON_MEAN,
    ON_STD,
    SHAPES,
    Parameters,
    Shape,
    best_scale,
    error_when_on,
    firing_when_off,
    moments_above,
)
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(samples=100_000, thresholds=9)
ON, OFF = norm(ON_MEAN, ON_STD), norm(OFF_MEAN, OFF_STD)


@pytest.fixture(scope="module")
def arrays():
    return EXPERIMENT.train(CONFIG, Run(0, "cpu"))


def integral(shape):
    """The error when on by numerical integration, split at the threshold."""

    def error(a):
        return float(shape(np.array([a]))[0] - a) ** 2 * ON.pdf(a)

    return quad(error, -4, shape.t)[0] + quad(error, shape.t, 8)[0]


@pytest.mark.parametrize("shape", [*SHAPES.values(), Shape(1.3, 0.4, 0.8), Shape(0.5, -0.2, 1.1)])
def test_errors_in_closed_form_are_the_integrals(shape):
    assert error_when_on(shape) == pytest.approx(integral(shape), rel=1e-6)


def test_the_set_up_of_the_paper_gives_the_numbers_of_the_claims():
    """0.0155 was sampled; it is 0.0157 exactly."""
    assert error_when_on(SHAPES["relu_scaled"]) == pytest.approx(0.233, rel=0.02)
    assert error_when_on(SHAPES["jumprelu"]) == pytest.approx(0.0155, rel=0.02)
    assert firing_when_off(SHAPES["jumprelu"]) == pytest.approx(0.159, rel=0.02)
    assert firing_when_off(SHAPES["relu"]) == 0.5


def test_firing_is_the_tail_of_the_normal():
    for shape in SHAPES.values():
        assert firing_when_off(shape) == pytest.approx(OFF.sf(shape.t))


def test_moments_are_those_of_scipy():
    for power, found in enumerate(moments_above(1.2, ON_MEAN, ON_STD)):
        assert found == pytest.approx(
            quad(lambda a, power=power: a**power * ON.pdf(a), 1.2, 8)[0], rel=1e-8
        )


@pytest.mark.parametrize("t", [0.0, 0.7, 1.0, 2.0])
def test_no_scale_is_better_than_the_best(t):
    best = error_when_on(Shape(t, t, best_scale(t)))
    for m in np.linspace(0.5, 6, 56).tolist():
        assert best <= error_when_on(Shape(t, t, m)) + 1e-12


def test_a_shape_beyond_its_threshold_is_refused():
    with pytest.raises(ValueError, match="another formula"):
        error_when_on(Shape(t=0.0, d=1.0, m=1.0))


def test_samples_agree_with_the_closed_forms(arrays):
    np.testing.assert_allclose(arrays["error"], arrays["exact_error"], rtol=0.05, atol=1e-6)
    np.testing.assert_allclose(arrays["firing"], arrays["exact_firing"], rtol=0.05)


def test_another_seed_is_another_sample(arrays):
    other = EXPERIMENT.train(CONFIG, Run(1, "cpu"))
    assert (other["error"] != arrays["error"]).all()
    np.testing.assert_array_equal(other["exact_error"], arrays["exact_error"])


def test_it_reports_and_draws(arrays):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    shapes = evaluation.metrics["shapes"]
    assert shapes["jumprelu"]["error_when_on"] < evaluation.metrics["best_scaled_relu_error"]
    assert evaluation.metrics["best_scaled_relu_error"] <= error_when_on(SHAPES["relu_scaled"])
    with use_style():
        for figure in EXPERIMENT.figures:
            assert figure.draw(rounded(evaluation.figures)[figure.name]).axes
