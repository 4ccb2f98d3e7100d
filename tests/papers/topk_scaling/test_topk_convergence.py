"""The vectors to convergence of histories that are known."""

import numpy as np
import pytest
from made_up_autoencoders import K, changed, metrics, without

from papers.topk_scaling.convergence import EXPERIMENT


def history(exponent):
    """Loss 0.5 · (1 + n^exponent · 100 / vectors), whose end is taken to be 0.5."""
    return lambda row: 0.5 * (1 + row["d_sae"][:, None] ** exponent * 100 / row["history_vectors"])


def made(tables, exponent):
    found = changed(tables, "history_nmse", history(exponent), group="grid")
    return changed(found, "nmse", lambda _: 0.5, group="grid")


@pytest.mark.parametrize("exponent", [0.6, 0.3])
def test_vectors_and_exponent_are_those_of_the_history(exact_tables, exponent):
    found = metrics(EXPERIMENT, made(exact_tables, exponent), k=K, epsilons=(0.05, 0.2))
    for key, epsilon in (("near", 0.05), ("far", 0.2)):
        expected = np.array([n**exponent * 100 / epsilon for n in found["n"]])
        inside = (expected > 1e4) & (expected < 1e6)
        got = np.array(found[key]["vectors"], dtype=float)
        assert got[inside] == pytest.approx(expected[inside], rel=0.01)
        assert np.isnan(got[~inside]).all()
        assert found[key]["known"] == inside.sum()
        if inside.sum() >= 3:
            assert found[key]["exponent"] == pytest.approx(exponent, abs=0.01)
        else:
            assert found[key]["exponent"] is None


def test_a_loss_that_still_falls_shows(tables):
    settled = metrics(EXPERIMENT, tables, k=K)
    assert max(settled["fall_in_last_half"]) < 0.01
    falling = changed(
        tables, "history_nmse", lambda row: row["history_vectors"] ** -0.2, group="grid"
    )
    falling = changed(falling, "nmse", lambda _: 1e6**-0.2, group="grid")
    found = metrics(EXPERIMENT, falling, k=K)
    assert found["fall_in_last_half"] == pytest.approx([2**0.2 - 1] * 5, rel=1e-3)
    # Without convergence the vectors are the same share of any training, whatever n.
    assert found["near"]["share_of_training"] == pytest.approx([1.02**-5] * 5, rel=1e-3)
    assert found["near"]["exponent"] == pytest.approx(0, abs=1e-6)


def test_larger_autoencoders_take_longer(tables):
    found = metrics(EXPERIMENT, tables, k=K)
    assert found["near"]["vectors"] == sorted(found["near"]["vectors"])
    assert found["near"]["exponent"] == pytest.approx(0.6, abs=0.02)
    assert all(
        a > b for a, b in zip(found["near"]["vectors"], found["far"]["vectors"], strict=True)
    )


def test_a_diverged_training_is_missing(tables):
    holed = changed(tables, "history_nmse", lambda _: np.nan, group="grid", d_sae=512)
    found = metrics(EXPERIMENT, holed, k=K)
    assert found["near"]["vectors"][1] is None
    assert found["fall_in_last_half"][1] is None
    assert found["near"]["known"] == 4


def test_degenerate_tables(smoke_tables):
    found = metrics(EXPERIMENT, smoke_tables, k=4)
    assert len(found["n"]) == 2
    assert found["near"]["exponent"] is None
    nothing = metrics(EXPERIMENT, without(smoke_tables), k=4)
    assert nothing["near"]["vectors"] == []
    assert nothing["far"]["exponent"] is None
