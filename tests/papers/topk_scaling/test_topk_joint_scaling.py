"""The joint law of losses that follow it, and of losses that do not."""

import made_up_autoencoders as made_up
import numpy as np
import pytest
from made_up_autoencoders import changed, leaves, metrics, without

from papers.topk_scaling.joint_scaling import EXPERIMENT
from papers.topk_scaling.scaling_fits import JointLaw

TRUTH = JointLaw(
    made_up.ALPHA, made_up.BETA_K, made_up.BETA_N, made_up.GAMMA, made_up.ZETA, made_up.ETA
)
NOISELESS = {"column": "nmse", "change": lambda row: TRUTH(row["d_sae"], row["penalty"])}


def test_the_law_is_recovered(exact_tables):
    found = metrics(EXPERIMENT, changed(exact_tables, **NOISELESS, group="grid"), resamples=5)
    assert found["cells"] == 25
    for part in (found, found["online"]):
        fitted = [part["with_floor"][field] for field in JointLaw._fields]
        assert fitted == pytest.approx(TRUTH, rel=2e-3)  # four digits are kept
        assert part["with_floor"]["held_out"]["max"] < 1e-6
        assert part["without_floor"]["held_out"]["median"] > 1e-5
    assert len(found["with_floor"]["held_out"]["by_cell"]) == 25


def test_signs_have_intervals(tables):
    found = metrics(EXPERIMENT, tables, resamples=60)
    assert found["interval"]["gamma"]["low"] < TRUTH.gamma < found["interval"]["gamma"]["high"] < 0
    for field in ("gamma", "eta"):
        interval = found["interval"][field]
        assert interval["low"] < found["with_floor"][field] < interval["high"]


def test_without_a_floor_none_is_claimed(tables, exact_tables):
    law = JointLaw(0.3, 0.1, -0.1, -0.01, -30.0, 0.0)
    noise = tables["scores"]["nmse"] / exact_tables["scores"]["nmse"]
    flat = changed(
        exact_tables,
        "nmse",
        lambda row: law(row["d_sae"], row["penalty"]) * noise[: len(row["name"])],
        group="grid",
    )
    found = metrics(EXPERIMENT, flat, resamples=2)
    with_floor, without_floor = (found[f"{key}_floor"]["held_out"] for key in ("with", "without"))
    assert without_floor["max"] < 0.02
    assert np.mean(with_floor["by_cell"]) > 0.95 * np.mean(without_floor["by_cell"])
    assert found["without_floor"]["gamma"] == pytest.approx(-0.01, abs=0.005)


def test_a_cell_that_diverged_is_left_out(tables):
    holed = changed(tables, "nmse", lambda _: float("nan"), group="grid", d_sae=256, penalty=4)
    found = metrics(EXPERIMENT, holed, resamples=2)
    assert found["cells"] == found["online"]["cells"] == 24
    assert found["with_floor"]["gamma"] < 0


def test_degenerate_tables(smoke_tables):
    found = metrics(EXPERIMENT, smoke_tables, resamples=2)
    assert found["cells"] == 4
    assert found["with_floor"]["gamma"] is None
    assert found["without_floor"]["held_out"]["median"] is None
    assert found["interval"]["gamma"] == {"low": None, "high": None}
    assert not any(
        leaf for leaf in leaves(metrics(EXPERIMENT, without(smoke_tables))) if leaf is not None
    )
