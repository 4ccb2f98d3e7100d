import json
from dataclasses import replace

import made_up_fronts
import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from papers.topk_scaling import refinement
from papers.topk_scaling.autoencoders import load_autoencoder
from papers.topk_scaling.refinement import EDGES, EXPERIMENT, Parameters, nmse, refined
from shared.errors import UserError
from shared.figures.style import use_style
from shared.stages import rounded

CONFIG = Parameters(contexts=2, vectors=20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        model = made_up_fronts.make_model()
        patch.setattr(refinement, "load", lambda name, device: model)
        yield made_up_fronts.make(tmp_path_factory.mktemp("refinement"), patch, model)


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    f = torch.rand(30, 40, generator=generator) * (torch.rand(30, 40, generator=generator) < 0.2)
    return f, W_dec, torch.randn(16, generator=generator), generator


def test_shrunk_activations_are_brought_back(problem):
    f, W_dec, b_dec, _ = problem
    f = f * (f.cumsum(1) < 4)  # few enough for one solution
    z = refined(0.6 * f, f @ W_dec + b_dec, W_dec, b_dec)
    torch.testing.assert_close(z, f, atol=1e-4, rtol=1e-4)


def test_the_support_stays_and_nothing_is_negative(problem):
    f, W_dec, b_dec, generator = problem
    x = torch.randn(30, 16, generator=generator)
    z = refined(f, x, W_dec, b_dec)
    assert (z[f == 0] == 0).all()
    assert (z >= 0).all()
    assert (z[f > 0] == 0).any()  # or the constraint was never tested


def test_the_error_is_the_least_there_is(problem):
    f, W_dec, b_dec, generator = problem
    x = 3 * torch.randn(30, 16, generator=generator)
    z = refined(f, x, W_dec, b_dec)
    for values, target, mine in zip(f, x - b_dec, z, strict=True):
        on = (values > 0).numpy()
        rows = W_dec.double().numpy()[on]
        best = lsq_linear(rows.T, target.double().numpy(), (0, np.inf), tol=1e-12).cost
        assert float((mine @ W_dec - target).square().sum() / 2) == pytest.approx(best, rel=1e-4)


def test_a_vector_without_active_latents_keeps_none(problem):
    _, W_dec, b_dec, _ = problem
    assert not refined(torch.zeros(2, 40), torch.ones(2, 16), W_dec, b_dec).any()


def test_every_autoencoder_is_measured_and_none_gets_worse(arrays):
    assert len(arrays["name"]) == 27
    assert (arrays["refined_nmse"] <= arrays["nmse"] * (1 + 1e-6)).all()
    assert arrays["histogram"].shape == (27, len(EDGES) - 1)
    np.testing.assert_array_equal(
        arrays["histogram"].sum(1), np.round(arrays["l0"] * CONFIG.vectors)
    )


def test_the_error_before_is_that_of_the_autoencoder(made):
    every = Parameters(contexts=6, vectors=10_000)
    found = EXPERIMENT.train(every, made)
    x = made_up_fronts.vectors(made_up_fronts.make_model(), "score")
    assert len(x) < every.vectors  # all are taken
    for place in (0, 10, 20):
        sae = load_autoencoder(made.folder, str(found["name"][place])).sae
        f = sae.encode(x)
        assert found["nmse"][place] == pytest.approx(nmse(x, sae.decode(f)), rel=1e-4)
        assert found["l0"][place] == pytest.approx(float((f > 0).sum() / len(x)))


def table(**changes):
    """Two methods at the same L0; ReLU shrinks by a tenth."""
    rows = [(m, s, l0) for m in ("topk", "relu") for s in range(3) for l0 in (4.0, 8.0, 16.0)]
    method, seed, l0 = (np.array(column) for column in zip(*rows, strict=True))
    relu = method == "relu"
    error = l0**-0.5 * (1 + 0.01 * seed)
    found = {
        "method": method,
        "seed": seed,
        "l0": l0,
        "nmse": np.where(relu, 1.5, 1.0) * error,
        "refined_nmse": np.where(relu, 1.2, 0.99) * error,
        "ratio": np.where(relu, 1 / 0.9, 1.0),
        "growth": np.where(relu, 1 / 0.9, 1.0),
        "histogram": np.ones((len(rows), len(EDGES) - 1)),
    }
    return found | changes


def test_the_gap_that_is_left_is_that_of_the_table():
    found = EXPERIMENT.evaluate(CONFIG, table()).metrics
    np.testing.assert_allclose(found["relu"]["ratio"], 1 / 0.9)
    np.testing.assert_allclose(found["relu"]["gain"], 0.2)
    np.testing.assert_allclose(found["topk_over_relu"]["original"]["ratio"], 1 / 1.5)
    np.testing.assert_allclose(found["topk_over_relu"]["refined"]["ratio"], 0.99 / 1.2)
    assert np.isnan(found["prolu"]["ratio"]).all()


def test_an_autoencoder_without_active_latents_leaves_its_seed_out():
    values = table()
    values["ratio"][0] = np.nan
    found = EXPERIMENT.evaluate(CONFIG, values).metrics
    assert np.isnan(found["topk"]["ratio"][0])
    assert found["topk"]["ratio"][1] == 1


def test_the_figure_draws_from_what_json_keeps(arrays):
    for values in (arrays, table()):
        plots = json.loads(json.dumps(rounded(EXPERIMENT.evaluate(CONFIG, values).figures)))
        with use_style():
            figure = EXPERIMENT.figures[0].draw(plots["refinement"])
            figure.canvas.draw()
            assert len(figure.axes) == 3


def test_without_autoencoders_the_user_is_told(made):
    nothing = {key: values[:0] for key, values in made.inputs["scores"].items()}
    with pytest.raises(UserError, match="train some first"):
        EXPERIMENT.train(CONFIG, replace(made, inputs={"scores": nothing}))
