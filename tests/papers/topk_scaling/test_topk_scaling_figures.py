"""The figures of the scaling laws, drawn from the rounded numbers alone."""

import importlib
import io
import json

import matplotlib.pyplot as plt
import pytest
from made_up_autoencoders import K, evaluated, without
from matplotlib.colors import to_rgb

from papers.topk_scaling.scaling_figures import power, shades
from shared.figures.style import use_style
from shared.stages import rounded

EXPERIMENTS = {
    "compute_frontier": {"k": K, "d_in": 256},
    "joint_scaling": {"resamples": 2},
    "latent_scaling": {},
    "learning_rates": {},
    "convergence": {"k": K},
    "batch_sizes": {},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:No artists with labels")  # where there is nothing to draw
def test_figures_draw_from_what_json_keeps(name, tables, smoke_tables):
    experiment = importlib.import_module(f"papers.topk_scaling.{name}").EXPERIMENT
    for found in (tables, smoke_tables, without(smoke_tables)):
        evaluation = evaluated(experiment, found, **EXPERIMENTS[name])
        plots = json.loads(json.dumps(rounded(evaluation.figures)))
        assert set(plots) == {figure.name for figure in experiment.figures}
        with use_style():
            for figure in experiment.figures:
                canvas = figure.draw(plots[figure.name])
                assert len(canvas.axes) == 2
                if found is not tables:  # what breaks a log scale shows only when it is rendered
                    canvas.savefig(io.BytesIO(), dpi=10)
                plt.close(canvas)


def test_shades_are_distinct_and_dark_enough_for_paper():
    assert shades(0) == []
    assert len(set(shades(8))) == 8
    assert all(sum(to_rgb(one)) < 2.2 for one in shades(8))


def test_a_missing_exponent_is_a_question_mark():
    assert power("n", -0.2634) == "$n^{-0.26}$"
    assert power("n", None) == power("n", float("nan")) == "$n^{?}$"
