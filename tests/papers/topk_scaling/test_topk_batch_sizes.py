"""The spread of losses over batch sizes."""

import numpy as np
import pytest
from made_up_autoencoders import BATCHES, changed, leaves, metrics, without

from papers.topk_scaling.batch_sizes import EXPERIMENT, spread


def test_the_spread_is_relative_to_the_least():
    assert spread(np.array([[0.5, 1.0], [0.6, 1.0], [0.55, 1.0]])) == pytest.approx([0.2, 0])
    assert np.isnan(spread(np.array([[0.5]]))).all()
    assert np.isnan(spread(np.array([[0.5], [np.nan]]))).all()


def test_early_and_final_losses_are_those_of_the_histories(exact_tables):
    found = metrics(EXPERIMENT, exact_tables)
    assert found["batch"] == list(BATCHES)
    assert found["early"]["nmse"] == sorted(found["early"]["nmse"])
    assert found["final"]["spread"] < 0.001 < 0.01 < found["early"]["spread"]
    early, final = (
        np.array([row(batch) for batch in BATCHES])
        for row in (lambda b: 1 + b / 1e5 * 10, lambda b: 1 + b / 1e5)
    )
    slow = changed(
        exact_tables,
        "history_nmse",
        lambda row: 1 + row["batch"][:, None] / 1e5 * 1e6 / row["history_vectors"],
        group="batch",
    )
    slow = changed(slow, "nmse", lambda row: 1 + row["batch"] / 1e5, group="batch")
    found = metrics(EXPERIMENT, slow, early=0.1)
    assert found["early"]["nmse"] == pytest.approx(early, rel=1e-3)
    assert found["early"]["spread"] == pytest.approx(early.max() / early.min() - 1, rel=0.01)
    assert found["final"]["spread"] == pytest.approx(final.max() / final.min() - 1, rel=1e-3)


def test_a_diverged_training_leaves_no_spread(tables):
    for column in ("nmse", "history_nmse"):
        tables = changed(tables, column, lambda _: np.nan, group="batch", batch=BATCHES[-1])
    found = metrics(EXPERIMENT, tables)
    assert found["final"]["spread"] is None
    assert found["early"]["nmse"][-1] is None


def test_degenerate_tables(smoke_tables):
    assert len(metrics(EXPERIMENT, smoke_tables)["batch"]) == 2
    one = without(smoke_tables, group="batch", batch=256)
    assert metrics(EXPERIMENT, one)["final"]["spread"] is None
    assert not any(leaves(metrics(EXPERIMENT, without(smoke_tables))))
