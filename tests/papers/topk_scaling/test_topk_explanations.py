import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from sklearn.metrics import f1_score, precision_score, recall_score
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.topk_scaling import explanations as module
from papers.topk_scaling.explanations import (
    EXPERIMENT,
    LATENT_COLUMNS,
    Parameters,
    activations,
    agreement,
    chosen,
    explained_energy,
    factor,
    in_words,
    legible,
    measurer,
    padding,
    remeasured,
    restored,
    sample,
    trend,
)
from papers.topk_scaling.n2g import Ngram
from shared.activations.sites import Site, read
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.preprocessing import Normalised
from shared.saes.topk import TopKConfig, TopKWeights
from shared.stages import rounded

LENGTH, D, SITE = 24, 16, Site("resid_post", 1)
WORDS = ["<|endoftext|>", " _", *(f" w{i}" for i in range(28))]
CONFIG = Parameters(
    d_sae=48, k=4, select=40, score=24, spliced=10, latents=6, firings=3, examples=5, longest=4
)


def make_model():
    shape = {"layers": 2, "d_model": D, "d_mlp": 32, "heads": 2, "activation": "relu"}
    config = ModelConfig(**shape, tied=False, steps=1, seed=0)
    network = create(config, len(WORDS), LENGTH + 2).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(8 if weight.dim() > 1 else 1)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=" w0"))
    return LanguageModel("made up", network, words)


def load_split(folder, split, length=LENGTH):
    tokens = np.random.default_rng(len(split)).integers(2, len(WORDS), (60, length))
    tokens[:, 0] = 0
    none = np.zeros(tokens.shape)
    return Contexts(tokens.astype(np.uint16), none.astype(np.uint8), none.astype(np.int32))


def autoencoder(folder, name, device="cpu"):
    n, k = (int(part[1:]) for part in name.split("_")[1:3])
    sae = TopKConfig(d_in=D, d_sae=n, k=k, seed=0).create()
    return Normalised(TopKWeights.from_export(sae.export()))


def table(rows):
    columns = ("name", "group", "method", "site", "d_sae", "penalty", "seed", "l0")
    values = [
        (f"{method}_n{n}_k{round(l0)}_{group}_s{seed}", group, method, str(SITE), n, p, seed, l0)
        for group, method, n, p, seed, l0 in rows
    ]
    return {
        key: np.array(column)
        for key, column in zip(columns, zip(*values, strict=True), strict=True)
    }


GRID = [("grid", "topk", n, float(k), 0, float(k)) for n in (24, 48, 96) for k in (2, 4, 8)]
FRONTS = [
    row
    for seed in range(3)
    for row in (
        ("fronts", "topk", 48, 4.0, seed, 4.0),
        ("fronts", "topk", 48, 8.0, seed, 8.0),
        ("fronts", "relu", 48, 0.1, seed, 9.0),
        ("fronts", "relu", 48, 0.2, seed, 3.0),
        ("fronts", "relu", 48, 0.4, seed, 0.0),
    )
]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def patched(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda name, device: model)
        patch.setattr(module, "load_split", load_split)
        patch.setattr(module, "load_autoencoder", autoencoder)
        yield


@pytest.fixture(scope="module")
def arrays(patched):
    return EXPERIMENT.train(CONFIG, Run(0, "cpu", inputs={"scores": table(GRID + FRONTS)}))


def drawn(evaluation):
    with use_style():
        return [
            figure.draw(rounded(evaluation.figures)[figure.name]) for figure in EXPERIMENT.figures
        ]


def test_the_cross_of_the_grid_and_a_pair_of_each_seed_are_chosen():
    found = chosen(table(GRID + FRONTS), CONFIG)
    on = found["role"] == "grid"
    pairs = set(zip(found["d_sae"][on], found["penalty"][on], strict=True))
    assert pairs == {(48, 2), (48, 4), (48, 8), (24, 4), (96, 4)}
    assert found["l0"][found["role"] == "topk"].tolist() == [4, 4, 4]
    assert found["l0"][found["role"] == "relu"].tolist() == [3, 3, 3]  # nearest to 4
    assert set(chosen(table(GRID), CONFIG)["role"]) == {"grid"}
    without = [row for row in GRID + FRONTS if row[1] != "relu" or row[-1] == 0]
    assert set(chosen(table(without), CONFIG)["role"]) == {"grid"}


@pytest.mark.parametrize(("parameter", "have"), [("d_sae", "24, 48, 96"), ("k", "2, 4, 8")])
def test_a_size_that_the_grid_lacks_is_named(parameter, have):
    config = CONFIG.model_copy(update={parameter: 5})
    with pytest.raises(UserError, match=rf"explanations.{parameter} is 5: the grid has {have}$"):
        chosen(table(GRID), config)


def test_precision_and_recall_are_scikit_learns():
    random = np.random.default_rng(0)
    said, true = random.random((2, 300)) < 0.3
    assert agreement(said, true) == pytest.approx(
        {
            "precision": precision_score(true, said),
            "recall": recall_score(true, said),
            "f1": f1_score(true, said),
        }
    )


def test_undefined_scores_are_nan():
    never, always = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    missed, empty = agreement(never, always), agreement(never, never)
    assert np.isnan(missed["precision"])
    assert (missed["recall"], missed["f1"]) == (0, 0)
    assert np.isnan(list(empty.values())).all()
    invented = agreement(always, never)
    assert (invented["precision"], invented["f1"]) == (0, 0)
    assert np.isnan(invented["recall"])


def test_the_factor_is_that_of_least_squares():
    s, a = np.random.default_rng(0).random((2, 50))
    best = np.linalg.lstsq(s[:, None], a)[0][0]
    assert factor(s, a) == pytest.approx(best)
    assert factor(np.zeros(50), a) == 0
    energy = explained_energy(best * s, a)
    assert energy == pytest.approx(1 - ((a - best * s) ** 2).mean() / (a**2).mean())
    assert energy > max(explained_energy(0.9 * best * s, a), explained_energy(1.1 * best * s, a))
    assert explained_energy(a, a) == 1
    assert np.isnan(explained_energy(s, np.zeros(50)))


def test_the_share_restored():
    zeroed, simulated = np.array([2.0, 2.0, 0.0, -1.0]), np.array([0.5, 3.0, 1.0, 1.0])
    np.testing.assert_allclose(restored(zeroed, simulated), [0.75, -0.5, np.nan, np.nan])


def test_a_trend_is_per_doubling_and_has_an_interval():
    random = np.random.default_rng(0)
    x = np.array([256.0, 512.0, 2048.0])
    rising = [0.1 * np.log2(at) + 0.05 * random.standard_normal(40) for at in x]
    found = trend(x, rising)
    assert found["slope"] == pytest.approx(np.polyfit(np.log2(x), [s.mean() for s in rising], 1)[0])
    assert 0.05 < found["low"] < found["slope"] < found["high"] < 0.15
    flat = trend(x, [random.standard_normal(40) for _ in x])
    assert flat["low"] < 0 < flat["high"]
    gaps = trend(x, [np.append(one, np.nan) for one in rising])
    assert gaps["slope"] == pytest.approx(found["slope"])
    assert np.isnan(list(trend(x, [rising[0], np.array([0.3]), np.empty(0)]).values())).all()


def test_examples_end_where_their_latent_fires(model):
    random = np.random.default_rng(0)
    text = random.integers(0, 9, (20, 10))
    dense = np.where(random.random((200, 5)) < [0.0, 0.005, 0.2, 0.3, 0.9], 1.5, 0.0)
    dense *= random.random(dense.shape) + 0.1
    config = Parameters(firings=5, examples=7, latents=2)
    found = sample(csc_matrix(dense), text, config, np.random.default_rng(1))
    assert len(found) == 2
    assert set(found) <= {2, 3, 4}
    for latent, examples in found.items():
        assert len(set(examples)) == 7
        for example in examples:
            context, end = divmod(
                int(np.flatnonzero(dense[:, latent] == example.activation)[0]), 10
            )
            assert example.tokens == tuple(text[context, : end + 1])


def test_whole_texts_are_measured_as_they_were_in_the_context(model):
    text = load_split(None, "select").tokens[:, 1:].astype(np.int64)
    tokens = torch.from_numpy(np.insert(text, 0, 0, axis=1))
    sae = autoencoder(None, "topk_n48_k4")
    f = sae.encode(read(model, tokens, [SITE])[SITE])[:, 1:]
    measure = measurer(model, SITE, sae, 0)
    latents = f[:, 9].argmax(1).numpy()
    np.testing.assert_allclose(measure(text[:, :10], latents), f[:, 9].max(1).values, rtol=1e-4)
    active = csc_matrix(f.flatten(0, 1).numpy())
    assert remeasured(measure, active, text) == 1
    shifted = measurer(model, SITE, sae, 5)  # another token in front
    assert remeasured(shifted, active, text) < 0.5
    assert np.isnan(remeasured(measure, csc_matrix(active.shape), text))


def test_large_batches_are_measured_in_parts(model, monkeypatch):
    text = load_split(None, "select").tokens[:, 1:6].astype(np.int64)
    sae = autoencoder(None, "topk_n48_k24")
    measure, latents = measurer(model, SITE, sae, 0), np.arange(len(text)) % 48
    whole = measure(text, latents)
    monkeypatch.setattr(module, "TOKENS", 20)
    np.testing.assert_allclose(measure(text, latents), whole, atol=1e-5)
    assert (whole > 0).any()


def test_the_padding_token_is_that_of_the_tokenizer(model):
    assert padding(model) == 1


def test_words_are_legible(model):
    assert legible(model, [2, None, 3]) == "·w0[*]·w1"
    found = [Ngram((2,), True, 1.0), Ngram((3, None), False, 1.0), Ngram((2,), True, 2.0), None]
    assert in_words(model, found) == "^·w0 2×   ·w1[*] 1×   ∅ 1×"


def test_every_chosen_autoencoder_is_explained(arrays):
    assert len(arrays["autoencoder_name"]) == 5 + 6
    assert np.bincount(arrays["autoencoder"]).max() <= CONFIG.latents
    assert (arrays["examples"] <= CONFIG.examples).all()
    assert (arrays["without"] <= arrays["examples"]).all()
    explained = arrays["without"] < arrays["examples"]
    assert (arrays["length"][explained] <= CONFIG.longest).all()
    np.testing.assert_array_equal(arrays["remeasured"] > 0.97, True)
    recall = arrays["always_on_recall"]
    assert (recall[np.isfinite(recall)] == 1).all()
    assert (arrays["zeroed_kl"] > 0).all()


def test_latents_that_stay_as_they_are_cost_nothing(patched, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda *_: {})
    run = Run(0, "cpu", inputs={"scores": table(GRID)})
    arrays = EXPERIMENT.train(CONFIG, run)
    assert set(LATENT_COLUMNS) <= set(arrays)
    np.testing.assert_allclose(arrays["zeroed_ce"], 0, atol=1e-6)
    np.testing.assert_allclose(arrays["simulated_kl"], 0, atol=1e-6)
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    assert np.isnan(evaluation.metrics["f1"])
    assert all(figure.axes for figure in drawn(evaluation))


def test_all_latents_zeroed_leave_the_error_alone(patched, model):
    text = torch.from_numpy(load_split(None, "score").tokens[:6].astype(np.int64))
    split = module.Split(text, read(model, text, [SITE])[SITE][:, 1:])
    sae = autoencoder(None, "topk_n24_k4")
    config = CONFIG.model_copy(update={"latents": 24, "firings": 1, "spliced": 6})
    random = np.random.default_rng(0)
    measure = measurer(model, SITE, sae, 0)
    found = module.explain(model, measure, sae, split, split, config, random)
    decoded = sae.reconstruct(split.x)
    none = Normalised(sae.sae._replace(W_enc=torch.zeros_like(sae.sae.W_enc)))
    expected = split.x - decoded + none.reconstruct(split.x)
    torch.testing.assert_close(found.zeroed, expected, rtol=1e-4, atol=1e-4)
    active = activations(sae, split.x)
    assert found.eligible == (np.diff(active.indptr) > 0).mean()


def test_it_reports_and_draws(arrays):
    evaluation = EXPERIMENT.evaluate(CONFIG, arrays)
    metrics = evaluation.metrics
    assert metrics["d_sae"]["x"].tolist() == [24, 48, 96]
    assert metrics["penalty"]["x"].tolist() == [2, 4, 8]
    assert 0 < metrics["precision"] <= 1
    assert metrics["always_on_precision"] < metrics["precision"]
    assert len(metrics["comparison"]["relu"]["f1"]) == 3
    shown = evaluation.figures["explanation_examples"]["rows"]
    f1 = [2 / (1 / row["precision"] + 1 / row["recall"]) for row in shown if row["recall"]]
    assert f1 == sorted(f1, reverse=True)
    assert len(drawn(evaluation)) == 3
