import numpy as np
import pytest

from papers.toy_superposition.nonlinear_compression import (
    Parameters,
    decode,
    encode,
    evaluate,
    exact_loss,
    linear_losses,
    run,
)
from shared.experiment import Run


def brute_force(steps, epsilon):
    """Midpoint rule over the unit square, finer in x, where the ramps are narrower."""
    x, y = np.meshgrid(*[(np.arange(cells) + 0.5) / cells for cells in (4000, 400)])
    x_out, y_out = decode(encode(x, y, steps, epsilon), steps, epsilon)
    return ((x - x_out) ** 2 + (y - y_out) ** 2).mean() / 2


@pytest.mark.parametrize(
    ("steps", "epsilon"), [(2, 0.1), (3, 0.1), (3, 0.25), (5, 0.01), (5, 0.2), (10, 0.05)]
)
def test_closed_form_is_the_integral(steps, epsilon):
    assert exact_loss(steps, epsilon) == pytest.approx(brute_force(steps, epsilon), rel=1e-3)


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_without_ramps_only_the_step_is_lost(steps):
    assert exact_loss(steps, 0.0) == pytest.approx(1 / (6 * steps**2), rel=1e-12)
    x, y = np.random.default_rng(0).random((2, 100))
    x_out, y_out = decode(encode(x, y, steps, 0.0), steps, 0.0)
    np.testing.assert_allclose(x_out, np.floor(steps * x) / steps)
    np.testing.assert_allclose(y_out, y)


def test_code_and_decoder_are_continuous_with_the_slope_of_their_ramps():
    steps, epsilon = 3, 0.1
    x = np.linspace(0, 1 - 1e-9, 30001)
    slopes = np.diff(encode(x, np.array(0.3), steps, epsilon)) / np.diff(x)
    assert slopes.max() == pytest.approx(1 / (steps * epsilon), rel=1e-3)
    assert np.abs(np.diff(decode(x, steps, epsilon)[0])).max() < 1e-3


def test_both_linear_codes_lose_a_24th():
    assert linear_losses() == pytest.approx((1 / 24, 1 / 24), rel=1e-12)


@pytest.mark.parametrize(("steps", "epsilon"), [(1, 0.1), (3, 0.4), (3, -0.1)])
def test_codes_without_a_closed_form_are_refused(steps, epsilon):
    with pytest.raises(ValueError, match="at least 2 steps"):
        exact_loss(steps, epsilon)


def test_three_steps_are_the_first_to_win():
    config = Parameters(samples=2000)
    metrics = evaluate(config, run(config, Run(0, "cpu"))).metrics
    assert metrics["fewest_steps_that_win"].tolist() == [3, 3, 3, 3]
    limit = metrics["widest_ramp_that_wins_with_three_steps"]
    assert exact_loss(3, limit) == pytest.approx(1 / 24)
    assert metrics["largest_error_in_standard_errors"] < 5
