from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_run import LENGTH, SEEDS, make, make_model

from papers.gated_sae import stand_in
from papers.gated_sae.held_out import held_out, load_autoencoder, site_of
from papers.gated_sae.rating_statistics import (
    EXPERIMENT,
    PAPER,
    STUDIES,
    Parameters,
    friedman_over,
    simulate_effects,
    simulate_other_tests,
    stand_in_statistics,
    summary,
)
from papers.gated_sae.stand_in import (
    Settings,
    nearest_pair,
    only,
    panels,
    scored_pairs,
    stand_in_score,
)
from shared.errors import UserError
from shared.figures.style import use_style
from shared.metrics.ratings import friedman, mann_whitney
from shared.stages import rounded

STAND_IN = Settings(l0=9, pairs=4, contexts=12, least=5)
CONFIG = Parameters(
    differences=(0.0, 0.5), studies=300, bootstrapped=40, resamples=200, stand_in=STAND_IN
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        model = make_model()
        patch.setattr(stand_in, "load", lambda name, device: model)
        yield make(tmp_path_factory.mktemp("ratings"), patch, model)


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


@pytest.fixture(scope="module")
def evaluation(arrays):
    return EXPERIMENT.evaluate(CONFIG, arrays)


def test_the_test_keeps_its_level_and_finds_a_large_effect():
    found = simulate_effects(CONFIG, 0)
    power = (found["p"] <= 0.05).mean(-1)
    assert found["p"].shape == (len(STUDIES), 2, 300)
    assert (power[:, 0] < 0.1).all()
    assert (power[:, 1] > 0.95).all()
    np.testing.assert_allclose(found["estimate"].mean(-1), [[0, 0.5]] * 3, atol=0.03)
    assert (found["limits"][..., 0] < found["limits"][..., 1]).all()
    assert found["held"].mean() > 0.8


def test_another_seed_is_another_simulation():
    first, again, other = (simulate_effects(CONFIG, seed)["p"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_each_test_finds_what_it_is_for_and_nothing_else():
    rejected = {key: (p <= 0.05).mean() for key, p in simulate_other_tests(CONFIG, 0).items()}
    for key, share in rejected.items():
        if key.endswith("_found"):
            assert share > rejected[key.replace("_found", "_null")] + 0.1, key
        else:
            assert share < 0.1, key


def test_a_score_is_high_for_a_feature_of_tokens_and_low_for_noise():
    random = np.random.default_rng(0)
    fit_tokens, tokens = (random.integers(0, 9, (60, 20)).astype(np.uint16) for _ in range(2))

    def units(tokens):
        noise = random.normal(size=tokens[:, 1:].shape)
        return np.stack([(tokens[:, 1:] == 4) * 1.0, noise], axis=-1)

    token, noise = stand_in_score(fit_tokens, units(fit_tokens), tokens, units(tokens))
    assert token > 0.99
    assert abs(noise) < 0.15


def test_the_baseline_is_that_of_the_nearest_l0():
    scores = {
        "name": np.array(["b0", "b1", "g0", "g1", "g2"]),
        "method": np.array(["baseline"] * 2 + ["gated"] * 3),
        "model": np.array(["m"] * 5),
        "site": np.array(["s.0"] * 5),
        "seed": np.zeros(5, dtype=int),
        "l0": np.array([30.0, 8.0, 40.0, 10.0, 0.0]),
    }
    assert nearest_pair(scores, "m", "s.0", 0, 20.0) == ("b0", "g0")
    assert nearest_pair(scores, "m", "s.0", 0, 11.0) == ("b1", "g1")
    assert panels(scores) == [("m", "s.0", 0)]
    assert panels({key: values[:2] for key, values in scores.items()}) == []


@pytest.mark.parametrize("name", ["gated_1_s0", "baseline_1_s0"])
def test_some_features_are_encoded_as_among_all(made, name):
    weights = load_autoencoder(made, name)
    x = torch.randn(30, weights.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    chosen = np.array([7, 2, 11])
    torch.testing.assert_close(only(weights, chosen).encode(x), weights.encode(x)[:, chosen])


def test_pairs_are_scored_on_text_that_they_were_not_fitted_on(made):
    found = scored_pairs(STAND_IN, made)
    assert set(found["model"]) == {"one_layer_a"}
    assert set(found["seed"]) == set(range(SEEDS))
    assert len(found["gated"]) <= STAND_IN.pairs * SEEDS
    assert (np.abs(found["gated"]) <= 1 + 1e-9).all()

    model, site = stand_in.load("one_layer_a", "cpu"), site_of("mlp_post.0")
    fit, measured = (held_out(made, model, site, split, 12) for split in ("select", "score"))
    names = nearest_pair(made.inputs["scores"], "one_layer_a", "mlp_post.0", 1, STAND_IN.l0)
    for name in names:
        weights = load_autoencoder(made, name)
        often = ((weights.encode(fit.vectors) > 0).sum(0) >= STAND_IN.least).numpy()
        scores = stand_in_score(
            fit.tokens,
            weights.encode(fit.x).numpy(),
            measured.tokens,
            weights.encode(measured.x).numpy(),
        )
        method = name.partition("_")[0]
        for one in found[method][found["seed"] == 1]:
            assert np.abs(scores[often] - one).min() < 1e-5
    assert fit.x.shape == (12, LENGTH - 1, weights.W_dec.shape[1])


def test_the_draw_of_features_follows_the_seed(made):
    first, again = scored_pairs(STAND_IN, made), scored_pairs(STAND_IN, made)
    np.testing.assert_array_equal(first["gated"], again["gated"])
    other = scored_pairs(STAND_IN, replace(made, seed=1))
    assert not np.array_equal(first["gated"], other["gated"])


def test_features_that_do_not_fire_often_enough_are_not_drawn(made):
    with pytest.raises(UserError, match="no feature fires 100000 times"):
        scored_pairs(STAND_IN.model_copy(update={"least": 100_000}), made)
    empty = {key: values[:9] for key, values in made.inputs["scores"].items()}
    with pytest.raises(UserError, match="no site with both"):
        scored_pairs(STAND_IN, replace(made, inputs={"scores": empty}))


def made_up_scores(effect):
    """Two models: one site of three seeds, and four layers of three sites; gated better there."""
    random = np.random.default_rng(0)
    rows = [("one", "mlp_post.0", seed, n) for seed in range(3) for n in range(10)]
    rows += [
        ("two", f"{kind}.{layer}", 0, n)
        for kind in ("attn_out", "mlp_out", "resid_post")
        for layer in range(4)
        for n in range(10)
    ]
    columns = ("model", "site", "seed", "number")
    found = {
        f"stand_in_{key}": np.array(values)
        for key, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
    better = effect * np.array([site.startswith("mlp_out") for _, site, _, _ in rows])
    found["stand_in_baseline"] = 0.5 + 0.1 * random.normal(size=len(rows))
    found["stand_in_gated"] = 0.5 + better + 0.1 * random.normal(size=len(rows))
    return found


def test_a_known_difference_of_sites_comes_out():
    found = stand_in_statistics(made_up_scores(0.3))
    sites = found["site"]["two"]
    assert sites["mlp_out"]["estimate"] == pytest.approx(0.3, abs=0.05)
    assert sites["mlp_out"]["p"] < 1e-6
    assert sites["attn_out"]["p"] > 0.05
    assert found["tests"]["friedman_sites_differences"] < 1e-6
    assert found["tests"]["friedman_layers_differences"] > 0.05
    assert found["all"]["pairs"] == 150
    low, high = found["all"]["interval"]
    assert low < found["all"]["estimate"] < high


def test_tests_are_those_of_the_ratings_layer():
    arrays = made_up_scores(0.1)
    found = stand_in_statistics(arrays)
    difference = arrays["stand_in_gated"] - arrays["stand_in_baseline"]
    first = arrays["stand_in_model"] == "one"
    expected = mann_whitney(difference[first], difference[~first])
    assert found["tests"]["mann_whitney_models_differences"] == pytest.approx(float(expected))
    sites = difference[~first].reshape(3, 40)
    expected = friedman(*sites)
    assert found["tests"]["friedman_sites_differences"] == pytest.approx(float(expected))
    assert summary(difference)["p"] == found["all"]["p"]


def test_friedman_takes_complete_blocks_only():
    values = np.array([1.0, 2, 3, 2, 3, 4, 9])
    treatment = np.array(["a", "b", "c", "a", "b", "c", "a"])
    block = [(0,)] * 3 + [(1,)] * 3 + [(2,)]
    expected = friedman(np.array([1.0, 2]), np.array([2.0, 3]), np.array([3.0, 4]))
    assert friedman_over(values, treatment, block) == pytest.approx(float(expected))
    assert np.isnan(friedman_over(values[:2], treatment[:2], block[:2]))


def test_the_papers_numbers_are_never_among_the_metrics(evaluation):
    assert "paper" not in evaluation.metrics
    assert set(evaluation.metrics) == {"simulated", "stand_in"}
    for figure in evaluation.figures.values():
        assert figure["source"].startswith("paper, section 4.3")
        for name in figure["paper"]:
            assert figure["paper"][name] == PAPER[name]


def test_figures_draw(evaluation):
    plotted = rounded(evaluation.figures)
    with use_style():
        for figure in EXPERIMENT.figures:
            assert figure.draw(plotted[figure.name]).axes


def test_figures_draw_with_several_models_and_sites(arrays):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays | made_up_scores(0.1))
    with use_style():
        for figure in EXPERIMENT.figures:
            assert figure.draw(rounded(evaluation.figures)[figure.name]).axes
