"""From text to a table of scores, on random language models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.gated_sae import autoencoders, scores, site_autoencoders
from papers.gated_sae.methods import BETAS, KINDS, WIDER, Method, Training, endings, plan
from papers.gated_sae.rescaled_baseline import RescaledConfig
from shared.activations.sites import Site, read
from shared.corpus import shards
from shared.corpus.shards import Contexts, corpus_folder, save_contexts
from shared.errors import Diverged
from shared.experiment import Run
from shared.language_models.load import load
from shared.language_models.train import ModelConfig, create, save_model
from shared.metrics.reconstruction import Reconstruction
from shared.saes.loading import load_sae
from shared.saes.standard import StandardConfig
from shared.saes.weights import save_sae

LENGTH, CONTEXTS = 32, 40
SHAPE = {"d_model": 16, "d_mlp": 32, "heads": 2, "steps": 1, "seed": 0}
COMMON = {"latents": 16, "batch": 16, "resample_inputs": 64, "ema": 0.7}
METHODS = {
    method: Method(lr=0.01, penalties=(3, 5) if method == "topk" else (0.001, 0.01))
    for method in KINDS
}
SITE = Site("mlp_post", 0)
CONFIG = autoencoders.Parameters(
    **COMMON,
    model="one",
    site=str(SITE),
    steps=40,
    methods=METHODS,
    seeds=2,
    rescaled_steps=20,
    rescaled_lr=0.01,
    sae_lens=(1,),
    sae_lens_path=(),
)
SITES = site_autoencoders.Parameters(
    **COMMON,
    model="deep",
    steps=20,
    methods={name: METHODS[name] for name in ("baseline", "gated")},
    layers=(0, 1),
    kinds=("resid_post", "mlp_out"),
)


def text(seed):
    tokens = np.random.default_rng(seed).integers(1, 200, (CONTEXTS, LENGTH)).astype(np.uint16)
    tokens[:, 0] = 0
    return Contexts(tokens, np.zeros(tokens.shape, np.uint8), np.zeros(tokens.shape, np.int32))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with text and two random models, and everything trained on them."""
    root = tmp_path_factory.mktemp("gated_sae")
    patch = pytest.MonkeyPatch()
    patch.setattr(shards, "ROOT", root)
    for name, layers, activation in (("one", 1, "relu"), ("deep", 2, "gelu_new")):
        config = ModelConfig(**SHAPE, layers=layers, activation=activation, tied=False)
        save_model(create(config, vocabulary=4096, length=LENGTH), root / name, {})
    from shared.language_models.load import BUNDLED

    (root / "tokenizer.json").write_bytes((BUNDLED / "tokenizer.json").read_bytes())
    for seed, split in enumerate(("train", "select", "score")):
        save_contexts(corpus_folder("tiny") / f"{split}.safetensors", text(seed), {})
    yield root
    patch.undo()


@pytest.fixture(scope="module")
def run(root):
    return Run(seed=0, device="cpu", folder=root / "artifacts" / "gated_sae" / "tiny")


@pytest.fixture(scope="module")
def config(root):
    return CONFIG.model_copy(update={"model": str(root / "one")})


@pytest.fixture(scope="module")
def sites_config(root):
    return SITES.model_copy(update={"model": str(root / "deep")})


@pytest.fixture(scope="module")
def trained(run, config):
    return autoencoders.run(config, run)


@pytest.fixture(scope="module")
def table(run, trained, sites_config):
    sites = site_autoencoders.run(sites_config, run)
    inputs = {"autoencoders": trained, "site_autoencoders": sites}
    parameters = scores.Parameters(contexts=4, site_contexts=3)
    return scores.run(parameters, replace(run, inputs=inputs))


def test_a_front_is_planned_as_appendix_d_has_it():
    training = Training(**COMMON, steps=40, methods=METHODS)
    for method in METHODS:
        for number, one in enumerate(plan(method, training, SITE, 32, seed=5)):
            assert one.job.name == f"{method}_mlp_post.0_{number}_s5"
            assert one.job.sae.d_sae == 16 * (WIDER if method == "baseline" else 1)
            assert one.job.betas == (BETAS if method != "topk" else (0.9, 0.999))
            assert (one.job.resampling is None) == (method in ("jumprelu", "topk"))
            assert one.job.ema == 0.7
    scaled = plan("gated", training, Site("mlp_out", 1), 32, seed=0, scale=10.0)[1]
    assert scaled.job.sae.l1 == pytest.approx(0.1)
    assert scaled.penalty == 0.01
    assert scaled.job.name == "gated_mlp_out.1_1_s0"


def test_everything_is_trained_and_can_be_read(run, trained):
    assert len(trained["name"]) == len(set(trained["name"])) == 2 * 2 * 9 + 1
    for name, method, d_sae in zip(
        trained["name"], trained["method"], trained["d_sae"], strict=True
    ):
        sae = load_sae(run.folder / "autoencoders" / str(name))
        assert sae.W_dec.shape == (d_sae, 32)
        if method != "sae_lens_gated":
            torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(int(d_sae)))
    assert not list((run.folder / "training").glob("*.safetensors"))


def test_rescaling_and_shifting_changes_magnitudes_alone(run, trained):
    x = torch.rand(50, 32)
    for name in trained["name"][trained["method"] == "rescaled"]:
        mine = load_sae(run.folder / "autoencoders" / str(name))
        frozen = load_sae(
            run.folder / "autoencoders" / str(name).replace("rescaled", "baseline_equal")
        )
        assert torch.equal(mine.W_dec, frozen.W_dec)
        assert torch.equal(mine.b_dec, frozen.b_dec)
        before, after = frozen.encode(x), mine.encode(x)
        assert not torch.allclose(before, after)
        assert not (after[before == 0]).any()


def test_rescaling_undoes_a_shrinkage(tmp_path):
    """A baseline whose encoder is half of what its decoder needs ends with γ = 1."""
    sae = StandardConfig(d_in=8, d_sae=8, l1=0, seed=0).create()
    sae.W_dec.copy_(torch.eye(8))
    sae.W_enc_T.copy_(torch.eye(8) / 2)
    sae.b_dec.zero_()
    save_sae(tmp_path / "sae", sae.export(), {})
    rescaled = RescaledConfig(d_in=8, d_sae=8, seed=0, frozen=tmp_path / "sae").create()
    x = torch.rand(512, 8)
    measured = Reconstruction()
    from shared.training.adam import Adam

    adam = Adam(rescaled.parameters, 0.05)
    for _ in range(200):
        adam.step(rescaled.gradients(x)[0])
    from shared.saes.gated import GatedWeights

    weights = GatedWeights.from_export(rescaled.export())
    measured.update(x, weights.decode(weights.encode(x)))
    assert measured.result().gamma == pytest.approx(1, abs=1e-3)
    assert measured.result().mse < 1e-5


def test_gradients_of_rescaling_are_those_of_autograd(tmp_path):
    sae = StandardConfig(d_in=6, d_sae=10, l1=0, seed=0).create()
    save_sae(tmp_path / "sae", sae.export(), {})
    rescaled = RescaledConfig(d_in=6, d_sae=10, seed=0, frozen=tmp_path / "sae").create()
    generator = torch.Generator().manual_seed(0)
    for tensor in rescaled.parameters.values():
        tensor.add_(0.1 * torch.randn(10, generator=generator))
    x = torch.randn(40, 6, generator=generator)
    found, measured = rescaled.gradients(x)
    r_mag, b_mag = (t.clone().requires_grad_() for t in (rescaled.r_mag, rescaled.b_mag))
    product = (x - rescaled.b_dec) @ rescaled.W_gate_T.T
    f = torch.relu(product * r_mag.exp() + b_mag) * (product + rescaled.b_gate > 0)
    loss = (f @ rescaled.W_dec + rescaled.b_dec - x).square().mean()
    expected = torch.autograd.grad(loss, (r_mag, b_mag))
    torch.testing.assert_close(found["r_mag"], expected[0])
    torch.testing.assert_close(found["b_mag"], expected[1])
    torch.testing.assert_close(measured.scalars["loss"], loss.detach())
    torch.testing.assert_close(rescaled.losses(x).mean(), loss.detach())
    with pytest.raises(TypeError):
        rescaled.resample(torch.tensor([0]), x[:1], torch.tensor([1]))


def test_seeds(run, trained, config, tmp_path):
    """A base seed gives the same table again, and shares no seed with another."""
    methods = {name: METHODS[name] for name in ("gated_unfrozen", "topk")}
    few = config.model_copy(update={"methods": methods, "sae_lens": ()})
    again = autoencoders.run(few, replace(run, folder=tmp_path / "tiny"))
    same = np.isin(trained["name"], again["name"])
    for key, column in again.items():
        np.testing.assert_array_equal(np.sort(column), np.sort(trained[key][same]), key)
    other = autoencoders.run(few, replace(run, seed=1, folder=tmp_path / "tiny"))
    assert not set(other["seed"]) & set(trained["seed"])


def test_divergence_is_reported(run, tmp_path, sites_config):
    methods = {"baseline": Method(lr=1e30, penalties=(0.001,)), "gated": METHODS["gated"]}
    config = sites_config.model_copy(update={"methods": methods})
    with pytest.raises(Diverged, match=r"sites_of_.*baseline_"):
        site_autoencoders.run(config, replace(run, folder=tmp_path / "tiny"))


def test_the_scale_of_a_site_is_its_root_mean_square(root):
    model, contexts = load(str(root / "deep")), text(0)
    site = Site("mlp_out", 1)
    tokens = torch.from_numpy(contexts.tokens[:16].astype(np.int64))
    x = read(model, tokens, [site])[site][:, 1:]
    found = site_autoencoders.scales(model, contexts, (Site("resid_post", 0), site))
    assert found[site] == pytest.approx(float(x.square().mean().sqrt()))


def test_scores_are_of_the_right_autoencoder(run, table):
    assert len(table["name"]) == 2 * 2 * 9 + 1 + 4 * 2 * 2
    for row in (0, 7, len(table["name"]) - 1):
        deep = table["model"][row].endswith("deep")
        kind, layer = str(table["site"][row]).split(".")
        site = Site(kind, int(layer))
        model = load(str(table["model"][row]))
        folder = run.folder / ("site_autoencoders" if deep else "autoencoders")
        sae = load_sae(folder / str(table["name"][row]))
        tokens = torch.from_numpy(text(2).tokens[: 3 if deep else 4].astype(np.int64))
        x = read(model, tokens, [site])[site][:, 1:].flatten(0, 1)
        f = sae.encode(x)
        assert table["l0"][row] == pytest.approx(float((f > 0).sum(1).float().mean()))
        mse = float((sae.decode(f) - x).square().mean())
        assert table["mse"][row] == pytest.approx(mse, rel=1e-4)
        assert table["alive"][row] == pytest.approx(float((f > 0).any(0).float().mean()))
        frequent = float(((f > 0).float().mean(0) > 0.1).float().mean())
        assert table["frequent"][row] == pytest.approx(frequent)


def test_a_topk_row_has_k_active_latents_at_most(table):
    rows = table["method"] == "topk"
    assert (table["l0"][rows] <= table["penalty"][rows]).all()


def test_reports(run, trained, table):
    metrics = endings(CONFIG, trained).metrics
    assert set(metrics) == set(trained["method"])
    assert len(metrics["gated"]["mse"]) == 2
    sites = scores.evaluate(scores.Parameters(contexts=4, site_contexts=3), table).metrics
    for model in sites.values():
        for losses in model.values():
            assert all(np.isfinite(value) for value in losses.values())
