import json
from dataclasses import replace

import made_up_fronts
import numpy as np
import pytest
import torch

from papers.topk_scaling import test_time_selection as module
from papers.topk_scaling.test_time_selection import (
    EXPERIMENT,
    Parameters,
    selections,
    threshold_for,
)
from shared.errors import UserError
from shared.figures.style import use_style
from shared.saes.topk import TopKWeights
from shared.stages import rounded

CONFIG = Parameters(contexts=3, factors=(0.01, 0.5, 1, 2, 1000))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        model = made_up_fronts.make_model()
        patch.setattr(module, "load", lambda name, device: model)
        root = tmp_path_factory.mktemp("selection")
        yield made_up_fronts.make(root, patch, model, methods=("topk",))


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = ((16, 48), (48,), (48, 16), (16,))
    return TopKWeights(*(torch.randn(shape, generator=generator) for shape in shapes), k=6)


@pytest.fixture
def x():
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("l0", [1, 6, 15])
def test_the_threshold_leaves_so_many_latents_in_the_mean(weights, x, l0):
    f = threshold_for(weights, x, l0).encode(x)
    assert int((f > 0).sum()) == l0 * len(x)
    assert len(set((f > 0).sum(1).tolist())) > 1  # and not the same number in every input


def test_no_threshold_lets_negative_pre_activations_through(weights, x):
    found = threshold_for(weights, x, 48)
    assert (found.threshold == 0).all()
    everything = torch.relu((x - weights.b_dec) @ weights.W_enc + weights.b_enc)
    torch.testing.assert_close(found.encode(x), everything)


def test_a_kept_activation_is_the_same_under_both(weights, x):
    (_, _, topk), (_, _, jumprelu) = selections(weights, x, [6])
    one, other = topk.encode(x), jumprelu.encode(x)
    both = (one > 0) & (other > 0)
    assert both.sum() > 500
    torch.testing.assert_close(one[both], other[both])


def test_the_k_of_training_is_the_autoencoder_itself(weights, x):
    (method, k, same), *_ = selections(weights, x, [6])
    assert (method, k) == ("topk", 6)
    assert torch.equal(same.encode(x), weights.encode(x))


def test_the_autoencoder_in_the_middle_is_measured_with_every_seed(arrays):
    assert set(arrays["trained_k"]) == {4}
    assert sorted(set(arrays["seed"])) == [0, 1, 2]
    assert sorted(set(arrays["k"])) == [1, 2, 4, 8, 48]
    own = (arrays["method"] == "topk") & (arrays["k"] <= 8)
    np.testing.assert_allclose(arrays["l0"][own], arrays["k"][own], atol=0.2)


def test_with_everything_on_both_are_one(arrays):
    last = arrays["k"] == 48
    for key in ("l0", "nmse", "kl", "ce"):
        one, other = (arrays[key][last & (arrays["method"] == m)] for m in ("topk", "jumprelu"))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_ratio_is_that_of_the_fronts():
    rows = [(m, s, l0) for m in ("topk", "jumprelu") for s in range(3) for l0 in (4.0, 8.0, 16.0)]
    method, seed, l0 = (np.array(column) for column in zip(*rows, strict=True))
    error = np.where(method == "topk", 1, 0.95) / l0
    table = {"method": method, "seed": seed, "l0": l0, "trained_k": np.full(len(l0), 8)}
    table |= dict.fromkeys(("nmse", "kl", "ce"), error)
    found = EXPERIMENT.evaluate(CONFIG, table).metrics
    np.testing.assert_allclose(found["nmse"]["ratio"], 0.95)
    np.testing.assert_allclose(found["ce"]["distance"], 0.05)


def test_the_figure_draws_from_what_json_keeps(arrays):
    plots = json.loads(json.dumps(rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)))
    with use_style():
        figure = EXPERIMENT.figures[0].draw(plots["test_time_selection"])
        figure.canvas.draw()
        assert len(figure.axes) == 2


def test_without_autoencoders_the_user_is_told(made):
    nothing = {key: values[:0] for key, values in made.inputs["scores"].items()}
    with pytest.raises(UserError, match="train some first"):
        EXPERIMENT.train(CONFIG, replace(made, inputs={"scores": nothing}))
