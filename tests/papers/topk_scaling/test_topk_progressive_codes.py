from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.topk_scaling import contexts as contexts_module
from papers.topk_scaling import progressive_codes
from papers.topk_scaling.progressive_codes import (
    EXPERIMENT,
    Parameters,
    greatest_rise,
    reconstructions,
    sparsities,
)
from shared.activations.sites import Site, read
from shared.corpus.shards import Contexts, save_contexts
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.metrics.reconstruction import Reconstruction
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.topk import TopKConfig, TopKWeights
from shared.saes.weights import save_sae
from shared.stages import rounded

D_IN, D_SAE, K, SITE = 8, 24, 2, "blocks.0.resid_post"
CONFIG = Parameters(model="made up", contexts=3)


def weights(seed=0):
    sae = TopKConfig(d_in=D_IN, d_sae=D_SAE, k=K, seed=seed).create()
    sae.b_dec.copy_(torch.linspace(-0.2, 0.3, D_IN))
    return sae.export()


def inputs(count=50):
    return torch.randn(count, D_IN, generator=torch.Generator().manual_seed(3))


def test_powers_of_two_up_to_twice_what_multi_topk_covers():
    assert sparsities(4, 1024) == [1, 2, 4, 8, 16, 32]
    assert sparsities(4, 10) == [1, 2, 4, 8]
    assert sparsities(3, 16) == [1, 2, 4, 8, 16]
    assert sparsities(1, 1) == [1]


def test_reconstructions_are_those_of_another_k():
    own, x = TopKWeights.from_export(weights()), inputs()
    ks = [1, 2, 5, 16, D_SAE]
    for k, (x_hat, l0) in zip(ks, reconstructions(own, x, ks), strict=True):
        other = own._replace(k=k)
        f = other.encode(x)
        torch.testing.assert_close(x_hat, other.decode(f), rtol=1e-5, atol=1e-5)
        assert l0 == pytest.approx(float((f > 0).sum(1).float().mean()))
    assert l0 < D_SAE  # negative ones never count


def make_model():
    shape = {"layers": 1, "d_model": D_IN, "d_mlp": 16, "heads": 2, "activation": "relu"}
    network = create(ModelConfig(**shape, tied=False, steps=1, seed=0), 30, 64)
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    return LanguageModel("made up", network.eval().requires_grad_(False), tokenizer)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny run: random model and text, three seeds of each method, a grid of two."""
    root = tmp_path_factory.mktemp("progressive")
    model = make_model()
    tokens = np.random.default_rng(0).integers(1, 30, (4, 64)).astype(np.uint16)
    tokens[:, 0] = 0
    none = np.zeros(tokens.shape)
    text = Contexts(tokens, none.astype(np.uint8), none.astype(np.int32))
    save_contexts(root / "corpus" / "score.safetensors", text, {})
    folder = root / "topk_scaling" / "smoke"
    described = [("progressive", m, s) for m in ("topk", "multi_topk") for s in (2, 0, 1)]
    described += [("grid", "topk", 0), ("grid", "topk", 1), ("grid", "gated", 0)]
    found = []
    for number, (group, method, seed) in enumerate(described):
        save_sae(folder / "autoencoders" / f"sae{number}", for_activations(weights(number)), {})
        found.append((f"sae{number}", group, method, SITE, D_SAE, float(K), seed, 5 - seed, 0.3))
    columns = ("name", "group", "method", "site", "d_sae", "penalty", "seed", "l0", "nmse")
    zipped = zip(columns, zip(*found, strict=True), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progressive_codes, "load", lambda name, device: model)
        patch.setattr(contexts_module, "corpus_folder", lambda profile: root / "corpus")
        scores = {key: np.array(values) for key, values in zipped}
        yield Run(0, "cpu", inputs={"scores": scores}, folder=folder)


@pytest.fixture(scope="module")
def arrays(made):
    return EXPERIMENT.train(CONFIG, made)


def test_every_autoencoder_is_measured_on_normalised_inputs(made, arrays):
    assert arrays["k_test"].tolist() == [1, 2, 4, 8, 16]
    assert arrays["nmse"].shape == arrays["l0"].shape == (6, 5)
    assert arrays["trained_l0"].tolist() == [5, 4]
    model = progressive_codes.load("made up", "cpu")
    text = contexts_module.load_split(made.folder, "score").tokens[:3].astype(np.int64)
    site = Site.parse(SITE)
    x = normalised(read(model, torch.from_numpy(text), [site])[site][:, 1:].flatten(0, 1))[0]
    other = TopKWeights.from_export(weights(3))._replace(k=8)
    expected = Reconstruction()
    expected.update(x, other.decode(other.encode(x)))
    assert arrays["nmse"][3, 3] == pytest.approx(expected.result().fvu, rel=1e-5)
    assert arrays["l0"][3, 3] == pytest.approx(float((other.encode(x) > 0).sum(1).float().mean()))


def test_a_group_that_is_empty_or_mixed_is_refused(made):
    scores = made.inputs["scores"]
    none = replace(made, inputs={"scores": {key: values[6:] for key, values in scores.items()}})
    mixed = replace(made, inputs={"scores": {**scores, "penalty": np.arange(9.0)}})
    for bad, column in ((none, "site"), (mixed, "penalty")):
        with pytest.raises(UserError, match=f"progressive need one {column}"):
            EXPERIMENT.train(CONFIG, bad)


def made_up(topk, multi_topk, k=4):
    """Arrays of two seeds, the second with an error 1% greater."""
    tests = len(topk)
    nmse = np.array([topk, multi_topk, topk, multi_topk], dtype=float)
    nmse[:2] *= 1.01
    return {
        "method": np.array(["topk", "multi_topk"] * 2),
        "seed": np.array([1, 1, 0, 0]),
        "k": np.array(k),
        "k_test": 2 ** np.arange(tests),
        "nmse": nmse,
        "l0": np.tile(2.0 ** np.arange(tests), (4, 1)),
        "trained_l0": np.array([8.0, 2.0]),
        "trained_nmse": np.array([0.2, 0.4]),
    }


def test_where_a_code_is_best_and_how_it_rises():
    arrays = made_up([0.8, 0.6, 0.4, 0.5, 0.9, 1.2], [0.8, 0.6, 0.45, 0.4, 0.404, 0.5])
    found = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    topk, multi = found["topk"], found["multi_topk"]
    assert topk["best_over_k"].tolist() == [1, 1]
    assert multi["best_over_k"].tolist() == [2, 2]
    assert topk["at_k"].tolist() == pytest.approx([0.4, 0.404])  # by seed
    assert topk["at_4k"].tolist() == pytest.approx([0.9, 0.909])
    assert topk["at_end"].tolist() == pytest.approx([1.2, 1.212])
    assert topk["rise_to_k"].tolist() == pytest.approx([-0.25, -0.25])  # 0.8 to 0.6
    assert topk["rise_to_4k"].tolist() == pytest.approx([0.8, 0.8])  # 0.5 to 0.9
    assert multi["rise_to_4k"].tolist() == pytest.approx([0.01, 0.01])
    assert multi["rise"].tolist() == pytest.approx([0.5 / 0.404 - 1] * 2)
    assert topk["nmse"].tolist() == pytest.approx(np.array(arrays["nmse"][0]) / 1.01 * 1.005)


def test_the_greatest_rise():
    assert greatest_rise(np.array([[1.0, 0.5, 0.6], [1.0, 0.9, 0.9]])).tolist() == pytest.approx(
        [0.2, 0.0]
    )
    assert np.isnan(greatest_rise(np.array([[1.0]]))).all()


@pytest.mark.parametrize(
    "arrays_of",
    [
        lambda trained: trained,
        lambda _: made_up([0.8, 0.6, 0.4, 0.5, 0.9, 1.2], [0.8, 0.6, 0.45, 0.4, 0.39, 0.4]),
        lambda _: made_up([0.9], [0.9], k=1),  # one latent
        lambda trained: {
            **trained,
            **{key: trained[key][:3] for key in ("method", "seed", "nmse", "l0")},
            **{key: trained[key][:0] for key in ("trained_l0", "trained_nmse")},
        },
    ],
    ids=["run", "made_up", "one_latent", "one_method"],
)
def test_it_reports_and_draws(arrays, arrays_of):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays_of(arrays))
    rounded(evaluation.metrics)
    with use_style():
        assert EXPERIMENT.figures[0].draw(rounded(evaluation.figures)["progressive_codes"]).axes
