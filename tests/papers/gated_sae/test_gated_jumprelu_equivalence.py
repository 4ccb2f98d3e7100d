from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_run import D_MLP, LENGTH, PENALTIES, SEEDS, gated, make, make_model

from papers.gated_sae import held_out as module
from papers.gated_sae import jumprelu_equivalence
from papers.gated_sae.held_out import held_out, load_autoencoder, site_of
from papers.gated_sae.jumprelu_equivalence import (
    EXPERIMENT,
    Parameters,
    agreement,
    within_rounding,
)
from shared.activations.sites import Site
from shared.errors import UserError
from shared.figures.style import use_style
from shared.saes.gated import GatedConfig, GatedWeights
from shared.stages import rounded

CONFIG = Parameters(contexts=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("equivalence")
    with pytest.MonkeyPatch.context() as patch:
        model = make_model()
        patch.setattr(jumprelu_equivalence, "load", lambda name, device: model)
        yield make(root, patch, model)


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


def inputs():
    return torch.randn(400, D_MLP, generator=torch.Generator().manual_seed(1))


def test_both_forms_agree():
    found = agreement(GatedWeights.from_export(gated(0, -0.2)), inputs())
    assert found.active > 100
    assert found.difference < 1e-6
    assert found.unexplained == 0
    assert found.mismatches <= 1


def test_a_wrong_threshold_does_not_pass_as_rounding():
    weights = GatedWeights.from_export(gated(0, -0.2))

    class Wrong(GatedWeights):
        def jumprelu(self):
            right = super().jumprelu()
            return right._replace(threshold=-right.threshold)

    assert agreement(Wrong(*weights), inputs()).unexplained > 100


def test_a_wrong_scale_shows_as_a_difference():
    weights = GatedWeights.from_export(gated(0, -0.2))

    class Wrong(GatedWeights):
        def jumprelu(self):
            right = super().jumprelu()
            return right._replace(W_enc=right.W_enc * 1.001)

    assert agreement(Wrong(*weights), inputs()).difference > 1e-5


def test_only_what_lies_on_the_threshold_is_within_rounding():
    weights = GatedWeights.from_export(gated(0, -0.2)).jumprelu()
    assert within_rounding(weights, inputs()).float().mean() < 1e-3
    x = inputs()[:1]
    z = (x - weights.b_dec) @ weights.W_enc + weights.b_enc
    at_threshold = weights._replace(threshold=z[0])
    assert within_rounding(at_threshold, x).all()


def test_untied_encoders_have_no_such_form():
    sae = GatedConfig(d_in=D_MLP, d_sae=8, l1=0.0, seed=0, tied=False).create()
    sae.W_mag_T.mul_(torch.rand(8, D_MLP, generator=torch.Generator().manual_seed(0)) + 0.5)
    with pytest.raises(ValueError, match="not tied"):
        agreement(GatedWeights.from_export(sae.export()), inputs())


def test_every_gated_autoencoder_is_compared_on_the_same_vectors(arrays):
    assert len(arrays["name"]) == PENALTIES * SEEDS
    assert all(name.startswith("gated") for name in arrays["name"])
    assert arrays["entries"].tolist() == [6 * (LENGTH - 1) * 24] * PENALTIES * SEEDS
    assert arrays["threshold"].shape == (PENALTIES * SEEDS, 24)
    np.testing.assert_allclose(arrays["shown_gated"], arrays["shown_jumprelu"], rtol=1e-5)


def test_it_reports_and_draws(arrays):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics = evaluation.metrics
    assert metrics["autoencoders"] == PENALTIES * SEEDS
    assert metrics["max_difference"] < 1e-6
    assert metrics["unexplained_mismatches"] == 0
    assert 0 < metrics["negative_thresholds"] < 1
    with use_style():
        for figure in EXPERIMENT.figures:
            assert figure.draw(rounded(evaluation.figures)[figure.name]).axes


def test_without_gated_autoencoders_it_says_so(made):
    scores = {key: values[:3] for key, values in made.inputs["scores"].items()}
    with pytest.raises(UserError, match="hold no gated autoencoder of one_layer_a"):
        EXPERIMENT.train(CONFIG, replace(made, inputs={"scores": scores}))


def test_held_out_activations_leave_out_position_zero(made):
    model = jumprelu_equivalence.load("one_layer_a", "cpu")
    found = held_out(made, model, site_of("mlp_post.0"), "score", 5)
    assert found.tokens.shape == (5, LENGTH)
    assert found.x.shape == (5, LENGTH - 1, D_MLP)
    assert found.vectors.shape == (5 * (LENGTH - 1), D_MLP)
    assert (found.x > 0).any()


def test_several_sites_are_read_in_one_pass(made, monkeypatch):
    model = jumprelu_equivalence.load("one_layer_a", "cpu")
    monkeypatch.setattr(module, "BATCH", 2)
    sites = [Site("mlp_post", 0), Site("resid_post", 0)]
    tokens, found = module.held_out_sites(made, model, sites, "score", 5)
    whole = held_out(made, model, sites[0], "score", 5)
    np.testing.assert_array_equal(tokens, whole.tokens)
    torch.testing.assert_close(found[sites[0]], whole.x)
    assert found[sites[1]].shape == (5, LENGTH - 1, model.d_model)


def test_sites_are_read_as_scores_writes_them():
    assert site_of("mlp_post.0") == Site("mlp_post", 0)
    assert site_of("attn_out.11") == Site("attn_out", 11)
    for wrong in ("mlp_post", "0.mlp_post", "mlp.0"):
        with pytest.raises(UserError, match="no site"):
            site_of(wrong)


def test_autoencoders_of_both_folders_are_found(made):
    source = made.folder / "autoencoders" / "gated_0_s0"
    target = made.folder / "site_autoencoders" / "elsewhere"
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    torch.testing.assert_close(
        load_autoencoder(made, "elsewhere"), load_autoencoder(made, "gated_0_s0")
    )
    with pytest.raises(UserError, match="is missing"):
        load_autoencoder(made, "nowhere")
