"""The exponents of losses that are power laws."""

import pytest
from made_up_autoencoders import NOISE_EXPONENT, changed, leaves, metrics, without

from papers.topk_scaling.latent_scaling import EXPERIMENT


def test_exponents_are_those_of_the_losses(exact_tables):
    powers = changed(
        exact_tables,
        "nmse",
        lambda row: 0.2 + row["d_sae"] ** (-0.01 * row["penalty"]),
        group="grid",
    )
    powers = changed(powers, "nmse", lambda row: row["d_sae"] ** -0.04, group="noise")
    found = metrics(EXPERIMENT, powers)
    assert found["k"] == 16
    assert found["noise"]["exponent"] == pytest.approx(-NOISE_EXPONENT)
    assert found["noise"]["r_squared"] == pytest.approx(1)
    floored = found["activations"]["with_floor"]
    assert (floored["floor"], floored["exponent"]) == pytest.approx((0.2, -0.16), abs=1e-3)
    assert floored["exponent"] < found["activations"]["exponent"] < 0


def test_steeper_with_k_as_the_joint_law_says(tables):
    exponents = metrics(EXPERIMENT, tables)["held_out"]
    assert exponents["k"] == [4, 8, 16, 32, 64]
    assert exponents["exponent"] == sorted(exponents["exponent"], reverse=True)
    assert all(
        low < value < high
        for low, value, high in zip(
            *(exponents[key] for key in ("low", "exponent", "high")), strict=True
        )
    )


def test_activations_and_noise_are_compared_by_the_same_measure(exact_tables):
    """What held-out text says is not mixed with the loss at the end of training."""
    scores = exact_tables["scores"]
    moved = {**exact_tables, "scores": {**scores, "nmse": scores["nmse"] * 2}}
    here, there = metrics(EXPERIMENT, exact_tables), metrics(EXPERIMENT, moved)
    assert all(here[key] == there[key] for key in ("activations", "noise"))


def test_noise_at_a_k_that_the_grid_lacks(tables):
    found = metrics(EXPERIMENT, without(tables, group="grid", penalty=16))
    assert found["activations"]["sizes"] == 0
    assert found["activations"]["exponent"] is None
    assert found["noise"]["exponent"] < 0


def test_degenerate_tables(smoke_tables):
    found = metrics(EXPERIMENT, smoke_tables)
    assert found["noise"]["sizes"] == 2
    assert found["noise"]["low"] is None
    assert not any(leaves(metrics(EXPERIMENT, without(smoke_tables))))
