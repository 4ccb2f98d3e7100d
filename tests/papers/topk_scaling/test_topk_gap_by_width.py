import json

import numpy as np
import pytest

from papers.topk_scaling.gap_by_width import EXPERIMENT, Parameters
from shared.experiment import Run
from shared.figures.style import use_style
from shared.stages import rounded

SIZES = (256, 512, 1024, 2048)
TOPK, RELU = -0.2, -0.12


def made(relu_l0=(8.0, 14.0, 24.0, 40.0), seeds=3):
    """Power laws of n and L0; TopK has an L0 of 16."""
    rows = []
    for seed in range(seeds):
        for n in SIZES:
            rows.append(("topk", seed, n, 16.0, n**TOPK * 16**-0.4))
            rows += [("relu", seed, n, l0, 1.3 * n**RELU * l0**-0.4) for l0 in relu_l0]
    method, seed, n, l0, nmse = (np.array(column) for column in zip(*rows, strict=True))
    found = {"method": method, "seed": seed, "d_sae": n, "l0": l0, "nmse": nmse}
    name = np.array([str(place) for place in range(len(rows))])
    return {**found, "name": name, "group": np.full(len(rows), "widths")}


def metrics_of(scores):
    arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", {"scores": scores}))
    return EXPERIMENT.evaluate(Parameters(), dict(arrays)).metrics


def keep(scores, chosen):
    return {key: values[chosen] for key, values in scores.items()}


def test_the_slopes_of_power_laws_are_found():
    found = metrics_of(made())
    assert found["compared"].tolist() == [4, 4, 4]
    np.testing.assert_allclose(found["slope"]["topk"], TOPK)
    np.testing.assert_allclose(found["slope"]["relu"], RELU)
    assert found["slope_of_ratio"]["mean"] == pytest.approx(RELU - TOPK)
    np.testing.assert_allclose(found["ratio"]["mean"], 1.3 * np.array(SIZES) ** (RELU - TOPK))
    np.testing.assert_allclose(found["ratio"]["largest"], 1.3 * 2048 ** (RELU - TOPK))
    np.testing.assert_allclose(found["nmse"]["relu"], 1.3 * np.array(SIZES) ** RELU * 16**-0.4)


def test_nothing_is_extrapolated():
    scores = made()
    far = (scores["method"] == "relu") & (scores["d_sae"] == 512) & (scores["l0"] < 16)
    found = metrics_of(keep(scores, ~far))
    assert found["compared"].tolist() == [3, 3, 3]
    assert np.isnan(found["ratio"]["mean"][1])
    np.testing.assert_allclose(found["slope"]["topk"], TOPK)  # over the widths that are compared


def test_a_seed_that_lacks_a_width_makes_the_mean_nan():
    scores = made()
    gone = (scores["method"] == "topk") & (scores["d_sae"] == 256) & (scores["seed"] == 2)
    found = metrics_of(keep(scores, ~gone))
    assert found["compared"].tolist() == [4, 4, 3]
    assert np.isnan(found["ratio"]["smallest"][2])
    assert np.isfinite(found["ratio"]["smallest"][:2]).all()


def test_fronts_that_never_meet_have_no_slope():
    found = metrics_of(made(relu_l0=(100.0, 200.0)))
    assert np.isnan(found["slope"]["relu"]).all()
    assert found["compared"].tolist() == [0, 0, 0]


def test_without_scores_there_is_nothing():
    scores = made()
    found = metrics_of(keep(scores, np.zeros(len(scores["name"]), dtype=bool)))
    assert len(found["slope"]["topk"]) == len(found["ratio"]["mean"]) == 0


def test_the_figure_draws_from_what_json_keeps(tables, smoke_tables):
    for run in (tables["scores"], smoke_tables["scores"], made(relu_l0=(100.0, 200.0))):
        arrays = EXPERIMENT.train(Parameters(), Run(0, "cpu", {"scores": run}))
        plots = json.loads(json.dumps(rounded(EXPERIMENT.evaluate(Parameters(), arrays).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["gap_by_width"])
            figure.canvas.draw()
            assert len(figure.axes) == 2
