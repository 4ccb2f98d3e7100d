import numpy as np
import pytest
import torch

from papers.toy_superposition import learning_dynamics as dynamics
from papers.toy_superposition.learning_dynamics import (
    HALF,
    alignment,
    correlated_sets,
    directions,
    ends_in_digons,
    evaluate,
    is_octahedron,
    is_swap,
    jumps,
    loss_drops,
    near,
    plateaus,
    settled,
    shifted_coincidences,
)

TIMES = 200
STEPS = np.arange(TIMES) * 20
FRAME = np.eye(3)
OCTAHEDRON = np.concatenate([FRAME, -FRAME], axis=1)
PRISM = np.concatenate([FRAME, FRAME - 2 / 3], axis=1)  # mirrored on the plane across (1, 1, 1)
CONFIG = dynamics.Parameters(
    energy_levels=dynamics.Dynamics(
        recipe={"steps": 1}, runs=1, batch=1, observe_every=20, evaluation=1
    ),
    transformations=dynamics.Dynamics(
        recipe={"steps": 1}, runs=1, batch=1, observe_every=20, evaluation=1
    ),
)


def rise(at, width=2.0):
    """From 0 to 1 around observation `at`."""
    return 1 / (1 + np.exp(-(np.arange(TIMES) - at) / width))


def swapping(seed=0):
    """Features 0 and 1 swap 0 and 1/2 at observation 120; the others are noise about a level."""
    noise = 0.005 * np.random.default_rng(seed).standard_normal((TIMES, 100))
    D = np.where(np.arange(100) < 50, 0.5, 0.0) + noise
    D[:, 0] = 0.5 * rise(120) + noise[:, 0]
    D[:, 1] = 0.5 - 0.5 * rise(120) + noise[:, 1]
    return D


def falling(at, height=0.05, noise=1e-4, seed=1):
    """A smooth loss that falls by a share of `height` at observation `at`."""
    wobble = noise * np.random.default_rng(seed).standard_normal(TIMES)
    return 10 * (1 - height * rise(at)) * (1 + wobble)


def test_a_swap_is_found_where_it_is():
    D = swapping()
    found = jumps(D)
    assert len(found) == 1
    assert abs(found[0] - 120) <= 2
    assert is_swap(D, int(found[0]))
    assert len(jumps(D, start=150)) == 0


def test_a_lone_jump_is_no_swap_and_a_slow_change_no_jump():
    D = swapping()
    D[:, 1] = 0.5
    assert not is_swap(D, 120)
    D[:, 0] = 0.5 * np.arange(TIMES) / TIMES
    assert len(jumps(D)) == 0


def test_settling_ends_with_the_transient_not_with_a_late_swap():
    D = swapping()
    D[:, 2:50] *= rise(40)[:, None]
    assert 35 < settled(D) < 55
    assert settled(np.full((TIMES, 5), 0.5)) == 0


def test_a_drop_is_found_and_noise_is_not():
    found = loss_drops(STEPS, falling(120))
    assert len(found) == 1
    assert abs(found[0] - 120) <= 3
    assert len(loss_drops(STEPS, falling(120, height=0.0), start=20)) == 0


def test_kinks_and_the_plateau_between_them():
    loss = falling(60, 0.9, 0.0) * (1 - 0.9 * rise(140))
    kinks = loss_drops(STEPS, loss)
    np.testing.assert_allclose(kinks, [60, 140], atol=6)
    (rest,) = plateaus(STEPS, loss, kinks)
    assert 75 < rest < 130


def test_coincidence_is_within_a_window():
    assert near([50, 80], [50 + 2 * HALF, 200]).tolist() == [True, False]
    assert near([50], []).tolist() == [False]
    assert near([], [50]).tolist() == []


def test_shifted_drops_hit_as_often_as_chance():
    event = (np.array([100]), np.array([100]), 0, TIMES)
    totals = shifted_coincidences([event], 20000)
    assert totals.mean() == pytest.approx((4 * HALF + 1) / TIMES, abs=0.01)
    assert shifted_coincidences([(np.array([5]), np.array([]), 0, TIMES)], 10).sum() == 0


def test_digons_leave_no_feature_between_the_levels():
    D = swapping()
    assert ends_in_digons(D)
    D[:, 3] = 0.4
    assert not ends_in_digons(D)


def test_alignment_of_octahedron_and_prism():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    shuffled = OCTAHEDRON[:, [0, 1, 2, 4, 5, 3]]
    assert alignment(rotation @ shuffled) == pytest.approx(1)
    assert alignment(PRISM) == pytest.approx(2 / 3)
    assert is_octahedron(rotation @ shuffled)
    assert not is_octahedron(PRISM)


def test_an_octahedron_with_a_pair_inside_a_set_is_another_one():
    inside = OCTAHEDRON[:, [0, 3, 1, 2, 4, 5]]
    assert not is_octahedron(inside)


def test_directions_of_each_set():
    collapsed = np.repeat(np.array([[1, -1], [1, -1], [1, -1.0]]), 3, axis=1)
    assert directions(collapsed) == (1, 1)
    assert directions(OCTAHEDRON) == (3, 3)
    half = np.concatenate([collapsed[:, :3], FRAME[:, [0, 0, 1]]], axis=1)
    assert directions(half) == (1, 2)


def test_sets_are_on_or_off_together():
    batch = correlated_sets(4).sample(torch.Generator().manual_seed(0))
    assert batch.weight.sum().item() == pytest.approx(1)
    on = batch.x[0] > 0
    assert bool((on[:3] == on[0]).all())
    assert bool((on[3:] == on[3]).all())
    assert float((batch.weight[0] * on[0]).sum()) == pytest.approx(dynamics.SET_DENSITY)


@pytest.mark.parametrize(("at", "coincident"), [(120, 1), (60, 0)])
def test_evaluate_tells_coincidence_from_chance(at, coincident):
    turn = rise(80)[:, None, None]
    arrays = {
        "level_steps": STEPS,
        "level_D": swapping()[:, None, :],
        "level_loss": falling(at)[:, None],
        "shape_steps": STEPS,
        "shape_W": ((1 - turn) * PRISM + turn * OCTAHEDRON)[:, None],
        "shape_loss": falling(80)[:, None],
    }
    metrics = evaluate(CONFIG, arrays).metrics
    levels, shapes = metrics["energy_levels"], metrics["transformations"]
    assert levels["jumps"] == [1]
    assert levels["coincident_jumps"] == [coincident]
    assert levels["jumps_at_a_shifted_drop"] < 0.2
    assert levels["runs_ending_in_digons"] == 1
    assert shapes["octahedra"] == 1
    assert shapes["loss_kinks"] == [1]
    assert shapes["opening_as_prism"] == 1
