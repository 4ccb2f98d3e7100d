import json

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from papers.topk_scaling import probes
from papers.topk_scaling.logistic_search import CHANCE, best_latents
from papers.topk_scaling.probe_tasks import TASKS
from papers.topk_scaling.probes import (
    EXPERIMENT,
    Parameters,
    Sample,
    evaluate,
    probe,
    spearman,
    subjects,
    train,
)
from shared.corpus.shards import Contexts
from shared.corpus.tokenizer import load_tokenizer
from shared.errors import UserError
from shared.experiment import Run
from shared.language_models.load import BUNDLED, LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.standard import StandardConfig
from shared.saes.weights import save_sae
from shared.stages import rounded

D_IN, LENGTH = 16, 64
CONFIG = Parameters(
    model="made up", contexts=30, least=5, k=16, latents=1024, nearest=3, directions=24
)


def changed(**options):
    return CONFIG.model_copy(update=options)


def test_the_autoencoders_vary_one_thing_at_a_time(tables):
    found = subjects(tables["scores"], CONFIG)
    grid = found["group"] == "grid"
    sizes = set(zip(found["d_sae"][grid], found["penalty"][grid], strict=True))
    assert sizes == {(n, 16) for n in (256, 512, 1024, 2048, 4096)} | {
        (1024, k) for k in (4, 8, 16, 32, 64)
    }
    assert len(np.unique(found["name"])) == len(found["name"])


def test_methods_are_compared_near_one_l0(exact_tables):
    found = subjects(exact_tables["scores"], CONFIG)
    for method in ("topk", "relu"):
        for seed in range(3):
            own = (found["group"] == "fronts") & (found["method"] == method)
            own &= found["seed"] == seed
            assert sorted(found["l0"][own]) == [8, 16, 32]


def test_autoencoders_that_never_fire_are_not_compared(exact_tables):
    scores = {key: np.array(values) for key, values in exact_tables["scores"].items()}
    scores["l0"][(scores["group"] == "fronts") & (scores["penalty"] == 16)] = 0
    found = subjects(scores, changed(nearest=9))
    assert sorted(set(found["l0"][found["group"] == "fronts"])) == [4, 8, 32, 64]


def test_a_k_that_is_not_trained_is_named(tables):
    with pytest.raises(UserError, match=r"k 3 or 5 latents: choose probes\.k"):
        subjects(tables["scores"], changed(k=3, latents=5))


def two_samples(signal, tasks=2, tokens=400):
    rng = np.random.default_rng(0)
    y = rng.random((2, tokens, tasks)) < 0.3
    x = rng.standard_normal((2, tokens, 6))
    x[..., :tasks] += signal * y
    return [Sample(torch.from_numpy(a).float(), b) for a, b in zip(x, y, strict=True)]


def test_a_probe_chooses_on_one_sample_and_measures_on_the_other():
    select, score = two_samples(3.0)
    found = probe(lambda x: torch.relu(x), select, score)
    best = best_latents(csc_array(torch.relu(select.x).numpy()), select.y)
    assert found.latent.tolist() == [0, 1]
    np.testing.assert_allclose(found.select, best.loss)
    assert (found.score != found.select).all()
    assert (found.score < 0.5).all()


def test_where_there_is_nothing_to_find_choosing_is_optimistic():
    select, score = two_samples(0.0)
    found = probe(lambda x: x, select, score)
    assert found.select.mean() < CHANCE
    assert found.score.mean() > found.select.mean()


def test_a_probe_goes_through_the_vectors_in_parts(monkeypatch):
    samples = two_samples(1.0)
    whole = probe(torch.relu, *samples)
    monkeypatch.setattr(probes, "VECTORS_AT_ONCE", 33)
    for part, expected in zip(probe(torch.relu, *samples), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


def test_spearman_is_that_of_less_loss():
    sizes = np.array([1.0, 2, 4, 8])
    assert spearman(sizes, np.array([4.0, 3, 2, 1])) == 1
    assert spearman(sizes, np.array([3.0, 4, 2, 1])) == pytest.approx(0.8)
    assert np.isnan(spearman(sizes[:1], sizes[:1]))
    assert np.isnan(spearman(sizes, np.ones(4)))


@pytest.fixture
def made_up_run(tmp_path, monkeypatch):
    """A random model that reads the bundled tokens, Python and prose, and some autoencoders."""
    tokenizer = load_tokenizer(BUNDLED / "tokenizer.json")
    shape = {"layers": 2, "d_model": D_IN, "d_mlp": 8, "heads": 2, "activation": "relu"}
    network = create(
        ModelConfig(**shape, tied=False, steps=1, seed=0), tokenizer.get_vocab_size(), LENGTH
    )
    network = network.eval().requires_grad_(False)
    model = LanguageModel("made up", network, tokenizer)
    line = 'def area(self, width=12):  # The size, "in all".\n    return width * self.X_MAX\n\n'
    ids = tokenizer.encode(line * 300).ids

    def split(folder, name):
        body = np.array(ids[("select", "score").index(name) :])
        body = body[: len(body) // (LENGTH - 1) * (LENGTH - 1)].reshape(-1, LENGTH - 1)
        tokens = np.concatenate([np.zeros((len(body), 1)), body], 1).astype(np.uint16)
        kinds, documents = np.ones(tokens.shape, np.uint8), np.zeros(tokens.shape, np.int32)
        return Contexts(tokens, kinds, documents)

    monkeypatch.setattr(probes, "load", lambda *_: model)
    monkeypatch.setattr(probes, "load_split", split)
    rows = []
    kinds = [("grid", "topk", 16, 4, 0), ("grid", "topk", 32, 4, 0), ("grid", "topk", 32, 8, 0)]
    kinds += [("fronts", method, 32, 4, seed) for method in ("topk", "relu") for seed in range(3)]
    for group, method, n, k, seed in kinds:
        name = f"{group}_{method}_{n}_{k}_{seed}"
        exported = StandardConfig(d_in=D_IN, d_sae=n, l1=0.0, seed=seed).create().export()
        save_sae(tmp_path / "autoencoders" / name, for_activations(exported), {})
        rows.append((name, group, method, n, float(k), seed, float(k), "blocks.1.resid_post"))
    columns = ("name", "group", "method", "d_sae", "penalty", "seed", "l0", "site")
    scores = {c: np.array(v) for c, v in zip(columns, zip(*rows, strict=True), strict=True)}
    return Run(0, "cpu", inputs={"scores": scores}, folder=tmp_path)


SMALL = changed(k=4, latents=32, nearest=1)


def test_a_run_is_measured_and_drawn(made_up_run):
    arrays = train(SMALL, made_up_run)
    used = int(arrays["used"].sum())
    assert arrays["select"].shape == arrays["score"].shape == (9 + 2, used)
    assert used >= 20
    assert arrays["d_sae"][-2:].tolist() == [D_IN, 24]
    assert not arrays["used"][list(TASKS).index("kind: hex")]
    assert (arrays["select"] <= CHANCE + 1e-5).all()
    assert (arrays["latent"] < arrays["d_sae"][:, None]).all()
    evaluation = evaluate(SMALL, arrays)
    assert evaluation.metrics["tasks"] == {"used": used, "left_out": len(TASKS) - used}
    assert len(evaluation.metrics["matched"]["score"]["topk"]) == 3
    for figure in EXPERIMENT.figures:
        figure.draw(json.loads(json.dumps(rounded(dict(evaluation.figures[figure.name])))))


def test_the_channels_are_those_of_normalised_activations(made_up_run):
    arrays = train(SMALL, made_up_run)
    model = probes.load()
    samples = [
        probes.sample(model, probes.Site("resid_post", 1), split, SMALL, made_up_run)
        for split in probes.SPLITS
    ]
    used = arrays["used"]
    select = samples[0]
    expected = best_latents(csc_array(normalised(select.x)[0].numpy()), select.y[:, used])
    np.testing.assert_allclose(arrays["select"][-2], expected.loss, atol=1e-6)


def test_contexts_are_taken_at_equal_distances(made_up_run):
    model = probes.load()
    site = probes.Site("resid_post", 1)
    few = probes.sample(model, site, "score", changed(contexts=2), made_up_run)
    assert few.x.shape == (2 * (LENGTH - 2), D_IN)
    assert few.y.shape == (2 * (LENGTH - 2), len(TASKS))
    every = probes.sample(model, site, "score", changed(contexts=10**6), made_up_run)
    np.testing.assert_allclose(few.x[: LENGTH - 2], every.x[: LENGTH - 2], atol=1e-5)
    np.testing.assert_allclose(few.x[2 - LENGTH :], every.x[2 - LENGTH :], atol=1e-5)


def test_too_little_text_is_named(made_up_run):
    with pytest.raises(UserError, match=r"no task has 900 tokens.*smaller probes\.least"):
        train(changed(k=4, latents=32, contexts=3, least=900), made_up_run)


def made_up_arrays(tables, config=CONFIG, tasks=4):
    """Losses that fall with n and k, in which ReLU loses 0.05 more than TopK."""
    found = subjects(tables["scores"], config)
    loss = 0.6 - 0.02 * np.log(found["d_sae"]) - 0.03 * np.log(found["l0"])
    loss = np.append(loss + 0.05 * (found["method"] == "relu"), [0.55, 0.58])
    control = {
        "name": ["channels", "random"],
        "group": ["control"] * 2,
        "method": ["channels", "random"],
        "d_sae": [256, 24],
        "seed": [0, 0],
        "penalty": [np.nan] * 2,
        "l0": [np.nan] * 2,
    }
    by_task = loss[:, None] + np.linspace(-0.01, 0.01, tasks)
    used = np.arange(len(TASKS)) < tasks
    return {
        **{key: np.append(found[key], np.array(values)) for key, values in control.items()},
        "select": by_task - 0.02,
        "score": by_task,
        "latent": np.zeros(by_task.shape, dtype=int),
        "task": np.array(list(TASKS)),
        "used": used,
        "shares": np.full((2, len(TASKS)), 0.1),
    }


def test_the_metrics_are_those_of_the_law(exact_tables):
    metrics = evaluate(CONFIG, made_up_arrays(exact_tables)).metrics
    assert metrics["by_n"]["d_sae"].tolist() == [256, 512, 1024, 2048, 4096]
    assert metrics["by_n"]["improves"] == pytest.approx({"select": 1, "score": 1})
    assert metrics["by_k"]["penalty"].tolist() == [4, 8, 16, 32, 64]
    assert metrics["matched"]["score"]["gap"]["mean"] == pytest.approx(0.05)
    assert metrics["matched"]["select"]["gap"]["mean"] == pytest.approx(0.05)
    np.testing.assert_allclose(metrics["channels"]["by_seed"], [0.55] * 3)
    np.testing.assert_allclose(
        metrics["topk"]["by_seed"], 0.6 - 0.02 * np.log(1024) - 0.03 * np.log(16)
    )
    assert metrics["topk"]["ahead_of_channels"] == [1, 1, 1]
    assert metrics["optimism"] == pytest.approx(0.02)
    assert metrics["tasks"] == {"used": 4, "left_out": len(TASKS) - 4}


def test_few_autoencoders_leave_metrics_undefined(smoke_tables):
    config = changed(k=4, latents=64)
    evaluation = evaluate(config, made_up_arrays(smoke_tables, config))
    gap = evaluation.metrics["matched"]["score"]["gap"]
    assert gap["mean"] == pytest.approx(0.05)
    assert np.isnan(gap["low"])
    for figure in EXPERIMENT.figures:
        figure.draw(json.loads(json.dumps(rounded(dict(evaluation.figures[figure.name])))))


def test_without_fronts_the_rest_is_reported(exact_tables):
    scores = {
        key: values[exact_tables["scores"]["group"] == "grid"]
        for key, values in exact_tables["scores"].items()
    }
    evaluation = evaluate(CONFIG, made_up_arrays({"scores": scores}))
    assert len(evaluation.metrics["matched"]["score"]["topk"]) == 0
    for figure in EXPERIMENT.figures:
        figure.draw(json.loads(json.dumps(rounded(dict(evaluation.figures[figure.name])))))
