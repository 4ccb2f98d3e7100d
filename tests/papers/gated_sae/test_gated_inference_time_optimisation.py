from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_run import LENGTH, PENALTIES, SEEDS, make, make_model

from papers.gated_sae import inference_time_optimisation as ito
from papers.gated_sae.held_out import load_autoencoder
from papers.gated_sae.inference_time_optimisation import (
    EXPERIMENT,
    Parameters,
    best,
    codes_of,
    encoder_gap,
)
from shared.activations.sites import Site, read, replaced_logits
from shared.errors import UserError
from shared.figures.style import use_style
from shared.saes.pursuit import gradient_pursuit
from shared.stages import rounded

CONFIG = Parameters(contexts=3, targets=(2, 4, 8))
AUTOENCODERS = 2 * PENALTIES * SEEDS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        model = make_model()
        patch.setattr(ito, "load", lambda name, device: model)
        yield make(tmp_path_factory.mktemp("ito"), patch, model)


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


@pytest.fixture(scope="module")
def evaluation(arrays):
    return EXPERIMENT.evaluate(CONFIG, arrays)


def test_every_dictionary_is_measured_at_its_encoder_and_every_target(arrays):
    assert set(arrays["method"]) == {"baseline", "gated"}
    for split in ("select", "score"):
        for key in ("l0", "fvu", "recovered"):
            assert arrays[f"{split}_{key}"].shape == (AUTOENCODERS, 4)


def test_pursuit_keeps_to_its_target_and_more_features_explain_more(arrays):
    assert (arrays["score_l0"][:, 1:] <= np.array(CONFIG.targets)).all()
    assert (np.diff(arrays["score_fvu"][:, 1:], axis=1) < 0).all()


def test_reconstructions_are_spliced_into_the_model(arrays, made):
    place = int(np.flatnonzero(arrays["name"] == "gated_1_s2")[0])
    weights, site = load_autoencoder(made, "gated_1_s2"), Site("mlp_post", 0)
    model = ito.load("one_layer_a", "cpu")
    tokens = torch.from_numpy(ito.held_out(made, model, site, "score", 3).tokens.astype(np.int64))

    def loss(replace):
        def keep_first(x):
            return torch.cat([x[:, :1], replace(x)[:, 1:]], 1)

        logits = replaced_logits(model, tokens, site, keep_first)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def pursued(x):
        flat = x.flatten(0, 1)
        f = gradient_pursuit(flat, weights.W_dec, weights.b_dec, 4)
        return weights.decode(f).view_as(x)

    clean, zero = loss(lambda x: x), loss(torch.zeros_like)
    for column, reconstruct in ((0, lambda x: weights.decode(weights.encode(x))), (2, pursued)):
        expected = (zero - loss(reconstruct)) / (zero - clean)
        assert arrays["score_recovered"][place, column] == pytest.approx(float(expected), abs=1e-3)
    inner = read(model, tokens, [site])[site][:, 1:].flatten(0, 1)
    x_hat = weights.decode(weights.encode(inner))
    unexplained = (inner - x_hat).square().sum() / (inner - inner.mean(0)).square().sum()
    assert arrays["score_fvu"][place, 0] == pytest.approx(float(unexplained), rel=1e-4)
    assert len(inner) == 3 * (LENGTH - 1)


def test_the_encoder_stands_before_the_targets(made):
    weights = load_autoencoder(made, "baseline_0_s0")
    x = torch.randn(20, weights.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    own, two, four = codes_of(weights, x, (2, 4))
    torch.testing.assert_close(own, weights.encode(x))
    assert (two > 0).sum(1).max() <= 2
    assert (four > 0).sum(1).max() <= 4


def test_the_best_dictionary_is_chosen_on_the_other_split():
    arrays = {
        "method": np.array(["gated"] * 3 + ["baseline"]),
        "seed": np.array([0, 0, 1, 0]),
        "select_recovered": np.array([[0.0, 0.5], [0.0, 0.6], [0.0, 0.9], [0.0, 0.95]]),
        "score_recovered": np.array([[0.0, 0.9], [0.0, 0.1], [0.0, 0.9], [0.0, 0.95]]),
    }
    assert best(arrays, "gated", 0, 1) == 1
    assert best(arrays, "gated", 1, 1) == 2


def test_the_gap_is_taken_at_the_encoders_l0_in_log_l0():
    """Halfway in log L0 between 4 and 16 is 8."""
    l0, value = np.array([8.0, 4.0, 16.0]), np.array([0.5, 0.6, 0.8])
    assert encoder_gap(l0, value) == pytest.approx(0.2)
    assert np.isnan(encoder_gap(np.array([3.9, 4.0, 16.0]), value))
    assert np.isnan(encoder_gap(np.array([17.0, 4.0, 16.0]), value))


def made_up(advantage):
    """Arrays in which gated dictionaries recover more by `advantage` at every target."""
    rows = [
        (method, seed, penalty)
        for method in ("baseline", "gated")
        for seed in range(3)
        for penalty in range(3)
    ]
    method, seed, penalty = (np.array(column) for column in zip(*rows, strict=True))
    l0 = np.tile([5.0, 2.0, 4.0, 8.0], (len(rows), 1))
    recovered = 0.1 * np.log(l0) + 0.01 * seed[:, None] - 0.02 * penalty[:, None]
    recovered[:, 0] -= np.where(method == "gated", 0.01, 0.03)
    recovered[:, 1:] += advantage * (method == "gated")[:, None]
    return {
        "name": np.array([f"{m}_{p}_s{s}" for m, s, p in rows]),
        "method": method,
        "seed": seed,
        "penalty": penalty,
        **{f"{split}_l0": l0 for split in ("select", "score")},
        **{f"{split}_recovered": recovered for split in ("select", "score")},
        **{f"{split}_fvu": 1 - recovered for split in ("select", "score")},
    }


def test_a_known_advantage_and_known_gaps_come_out():
    metrics = EXPERIMENT.evaluate(CONFIG, made_up(0.0)).metrics
    np.testing.assert_allclose(metrics["encoder_gap"]["gated"], 0.01)
    np.testing.assert_allclose(metrics["encoder_gap"]["baseline"], 0.03)
    assert metrics["share_of_targets_won"] == 0
    metrics = EXPERIMENT.evaluate(CONFIG, made_up(0.05)).metrics
    assert metrics["advantage"]["target_4"]["mean"] == pytest.approx(0.05)
    assert metrics["targets_won"] == 3
    own = metrics["best"]["gated"]["target_4"]
    np.testing.assert_allclose(own["recovered"], 0.1 * np.log(4) + 0.05 + 0.01 * np.arange(3))
    np.testing.assert_allclose(own["own_l0"], 5)


def test_encoders_beyond_the_targets_leave_no_gap():
    arrays = made_up(0.0)
    for split in ("select", "score"):
        arrays[f"{split}_l0"][:, 0] = 50
    assert np.isnan(EXPERIMENT.evaluate(CONFIG, arrays).metrics["encoder_gap"]["gated"]).all()


def test_figures_draw(evaluation):
    plotted = rounded(evaluation.figures)
    with use_style():
        for figure in EXPERIMENT.figures:
            assert figure.draw(plotted[figure.name]).axes


def test_a_method_without_autoencoders_is_named(made):
    scores = {key: values[:9] for key, values in made.inputs["scores"].items()}
    with pytest.raises(UserError, match="hold no gated autoencoder"):
        EXPERIMENT.train(CONFIG, replace(made, inputs={"scores": scores}))
