"""What feature_geometry reads off models whose geometry is known."""

import numpy as np
import pytest
import torch

from papers.toy_superposition import feature_geometry
from papers.toy_superposition.feature_geometry import (
    LONG_DENSITIES,
    Parameters,
    Setting,
    census,
    evaluate,
    graph,
    joint_xavier,
    resolved,
    run,
    window,
)
from papers.toy_superposition.polytopes import UNIFORM, tegum
from papers.toy_superposition.training import Recipe
from shared import parallel
from shared.experiment import Run

SETTING = Setting(recipe=Recipe(steps=1), batch=8)
CONFIG = Parameters(notebook=SETTING, paper=SETTING, long=SETTING)


def test_initialisation_is_as_small_as_the_notebooks() -> None:
    torch.manual_seed(0)
    notebook = torch.nn.init.xavier_normal_(torch.empty(20, 200, 20))
    assert joint_xavier(200, 20) == pytest.approx(float(notebook.std()), rel=0.02)


def test_sharing_out_the_densities_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(recipe=Recipe(steps=3), batch=16)
    config = Parameters(notebook=setting, paper=setting, long=setting)
    whole = run(config, Run(0, "cpu"))
    # Three shares of ten densities and of two: uneven, and one empty.
    monkeypatch.setattr(feature_geometry, "workers", lambda device, steps: 3)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    shared_out = run(config, Run(0, "cpu"))
    assert list(shared_out) == list(whole)
    for key, array in whole.items():
        np.testing.assert_array_equal(shared_out[key], array)


def test_window_counts_the_line_and_flanks_of_equal_width() -> None:
    D = np.array([0.4951, 0.5, 0.5049, 0.4875, 0.512, 0.513, 0.506, 0.3])
    assert window(D, 0.5, 0.005) == {"on": 3, "flanks": [1, 2], "flank": 1.5}


def test_census_counts_polytopes_and_averages_their_features() -> None:
    W = tegum(UNIFORM["pentagon"], UNIFORM["digon"], UNIFORM["digon"])
    counts = census([W, UNIFORM["tetrahedron"]])
    assert {name: entry["count"] for name, entry in counts.items()} == {
        "tetrahedron": 1, "triangle": 0, "digon": 2, "pentagon": 1, "square_antiprism": 0,
    }  # fmt: skip
    assert counts["pentagon"]["dimensionality"] == pytest.approx(0.4)
    assert counts["triangle"]["dimensionality"] == 0


def test_resolved_tells_tetrahedra_from_lone_features_of_the_same_dimensionality() -> None:
    tetrahedra = resolved(UNIFORM["tetrahedron"], 3 / 4)
    assert tetrahedra["on"] == 4
    assert tetrahedra["nearest_cosine"] == pytest.approx(-1 / 3)
    # One learned feature and, along it, one of squared norm 1/3 of its own: D = 3/4 too.
    lone = np.array([[0.8, 0.8 / np.sqrt(3), 0.0], [0.0, 0.0, 0.9]])
    assert resolved(lone, 3 / 4)["on"] == 1
    assert resolved(lone, 3 / 4)["nearest_cosine"] == pytest.approx(0)


def test_graph_names_the_learned_features_and_leaves_out_the_others() -> None:
    W = tegum(UNIFORM["triangle"], UNIFORM["digon"], np.array([[0.2]]))
    drawn = graph(W)
    assert drawn["names"] == ["triangle"] * 3 + ["digon"] * 2
    assert len(drawn["edges"]) == 4


def test_evaluate_on_digons() -> None:
    W = np.stack([tegum(UNIFORM["digon"], UNIFORM["digon"])] * 3)
    density = np.array([1.0, *LONG_DENSITIES])
    arrays = {"W": W, "density": density, "notebook_W": W, "notebook_density": density}
    metrics = evaluate(CONFIG, arrays).metrics
    np.testing.assert_allclose(metrics["paper"]["dimensions_per_feature"], 0.5)
    assert metrics["notebook"]["levels_at_half"] == 3
    assert metrics["notebook"]["levels_at_one"] == 0
    assert metrics["paper"]["sum_error"] == pytest.approx(0)
    assert metrics["notebook"]["lines"]["digon"] == {"on": 12, "flanks": [0, 0], "flank": 0}
    assert metrics["long"]["two_thirds"]["on"] == 0
