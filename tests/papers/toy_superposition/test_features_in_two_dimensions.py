import numpy as np

from papers.toy_superposition.features_in_two_dimensions import (
    DENSITIES,
    NOTEBOOK_DENSITIES,
    Parameters,
    evaluate,
)

CONFIG = Parameters(recipe={"steps": 1}, restarts=1, per_support=1)


def polygon(angles):
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))])


def arrays(dense, pairs, pentagon):
    density = np.array(DENSITIES + NOTEBOOK_DENSITIES)
    W = np.stack([dense, pairs, *[pentagon] * (len(density) - 2)])
    return {"density": density, "W": W, "b": np.zeros((len(W), 5)), "loss": np.zeros(len(W))}


DENSE = polygon([0, 90, 0, 0, 0]) * [1, 1, 0, 0, 0.1]
PAIRS = polygon([0, 180, 90, 270, 45]) * [1, 1, 1, 1, 0]
PENTAGON = polygon(np.arange(5) * 144 + 7)


def test_the_papers_three_solutions():
    metrics = evaluate(CONFIG, arrays(DENSE, PAIRS, PENTAGON)).metrics
    assert metrics["represented"].tolist() == [2, 4, 5]
    assert metrics["dense_max_abs_cosine"] < 1e-12
    assert metrics["antipodal_pairs_at_80"] == 2
    assert metrics["pentagon_gap_error_degrees"] < 1e-9


def test_other_solutions_are_told_apart():
    skewed = polygon([0, 72, 144, 216, 300])
    metrics = evaluate(CONFIG, arrays(polygon([0, 60, 0, 0, 0]), PENTAGON, skewed)).metrics
    assert metrics["represented"].tolist() == [5, 5, 5]
    assert metrics["dense_max_abs_cosine"] > 0.4
    assert metrics["antipodal_pairs_at_80"] == 0
    assert np.isclose(metrics["pentagon_gap_error_degrees"], 12)
