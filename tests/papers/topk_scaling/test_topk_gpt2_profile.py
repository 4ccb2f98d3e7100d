"""Profile gpt2, end to end, on a random GPT-2 of twelve layers that stands in the hub's cache."""

import importlib
import json
import math

import numpy as np
import pytest
import yaml
from cached_gpt2 import WIDTH, offline, write_model, write_shards
from full_size import full_size_gpt2
from tiny_tokenizer import WORDS

from papers.topk_scaling import autoencoders, scores
from papers.topk_scaling.__main__ import EXPERIMENTS
from papers.topk_scaling.autoencoders import NOISE, SPARSE, plan
from papers.topk_scaling.contexts import LENGTH, load_split
from shared.corpus.build import SPLITS
from shared.corpus.tokenizer import END_OF_TEXT
from shared.experiment import Run
from shared.files import ROOT
from shared.language_models.load import load
from shared.stages import Paper, rounded

PAPER = Paper("topk_scaling", EXPERIMENTS)
FEWER_LATENTS, FEWER_ACTIVE, FEWER_VECTORS = 64, 16, 256
SMALL = {
    "scores": {"contexts": 3, "together": 40},
    "compute_frontier": {"k": 2, "d_in": WIDTH, "budgets": 8},
    "convergence": {"k": 2},
    "probes": {"contexts": 6, "least": 5, "k": 4, "latents": 128, "directions": 8},
    "explanations": {"d_sae": 128, "k": 4, "latents": 2, "select": 6, "score": 6, "spliced": 2}
    | {"firings": 2, "examples": 2, "longest": 3},
    "ablation_sparsity": {"contexts": 2, "ablations": 2},
    "refinement": {"contexts": 2, "vectors": 4},
    "progressive_codes": {"contexts": 2},
    "test_time_selection": {"contexts": 2},
    "joint_scaling": {"resamples": 2},
    "released_autoencoders": {"autoencoders": {}},  # which stand on the hub
}
"""What makes the profile small, beside fewer and smaller autoencoders."""


def experiment(name):
    return importlib.import_module(f"papers.topk_scaling.{name}").EXPERIMENT


def smaller(sweep):
    """The sweep with all sizes divided, no more than two of each, and one seed."""
    penalties = sweep["penalties"][2:4] or sweep["penalties"]
    if sweep["method"] in SPARSE:
        penalties = [k // FEWER_ACTIVE for k in penalties]
    batches = [batch // FEWER_VECTORS for batch in sweep.get("batches", [])]
    return sweep | {
        "latents": [n // FEWER_LATENTS for n in sweep["latents"][1:3] or sweep["latents"]],
        "penalties": penalties,
        "lrs": sweep["lrs"][:2],
        "seeds": 1,
        "batches": batches[:2] if len(batches) > 1 else [],
    }


def configuration(name):
    block = PAPER.block("gpt2", name) | SMALL.get(name, {})
    if name == "autoencoders":
        block["sweeps"] = [smaller(sweep) for sweep in block["sweeps"]]
        block |= {"batch": block["batch"] // FEWER_VECTORS, "steps": 50}
        block |= {"dead_after": 200, "resample_inputs": 32}
    return experiment(name).config(**block)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The hub's cache with a "gpt2", and the token shards of the profile, made by the command."""
    root = tmp_path_factory.mktemp("topk_gpt2_profile")
    with offline(root) as patch:
        patch.setattr(autoencoders, "workers", lambda *_: 1)
        patch.setattr(scores, "WORTH_SPREADING", math.inf)
        write_model(root, 2 * LENGTH)
        write_shards(root, 500, 2 * LENGTH)
        yield root


@pytest.fixture(scope="module")
def trained(root):
    """The arrays of all experiments."""
    found = {}
    for name in EXPERIMENTS:
        inputs = {needed: found[needed] for needed in EXPERIMENTS[name]}
        run = Run(0, "cpu", inputs, root / "artifacts" / "topk_scaling" / "gpt2")
        found[name] = dict(experiment(name).train(configuration(name), run))
    return found


def test_the_text_is_the_models_own_in_short_contexts(root):
    end = load("gpt2").tokenizer.token_to_id(END_OF_TEXT)
    assert end == WORDS - 1
    for split in SPLITS:
        tokens = load_split(root / "gpt2", split).tokens
        assert tokens.shape[1] == LENGTH
        assert (tokens[:, 0] == end).all()


def test_everything_is_trained_and_scored_at_the_sites_of_the_profile(trained):
    table, scored = trained["autoencoders"], trained["scores"]
    block = PAPER.block("gpt2", "autoencoders")
    layers = next(sweep["sites"] for sweep in block["sweeps"] if sweep["group"] == "layers")
    assert set(table["site"]) == {block["site"], NOISE, *layers}
    assert set(scored["site"]) == {block["site"], *layers}
    assert sorted(scored["name"]) == sorted(table["name"][~np.isin(table["group"], scores.ONLINE)])
    assert set(table["group"]) == {sweep["group"] for sweep in block["sweeps"]}
    assert set(table["method"]) == {sweep["method"] for sweep in block["sweeps"]}
    assert len(set(table["vectors"])) == 1
    for key in ("nmse", "history_nmse"):
        assert np.isfinite(table[key]).all(), key
    for key in ("l0", "nmse", "spliced", "kl"):
        assert np.isfinite(scored[key]).all(), key
    assert scored["loss"][0] == pytest.approx(math.log(WORDS), rel=0.1)  # of a random model


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what so small a run has none of
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_evaluates_and_draws(trained, name):
    evaluation = experiment(name).evaluate(configuration(name), trained[name])
    assert evaluation.metrics
    assert set(evaluation.figures) == {figure.name for figure in experiment(name).figures}
    plots = json.loads(json.dumps(rounded(evaluation.figures)))
    for figure in experiment(name).figures:
        figure.draw(plots[figure.name])


def test_parameters_name_autoencoders_that_the_profile_trains():
    trained_on = PAPER.config("gpt2", "autoencoders")
    planned = plan(trained_on, 768, 0)
    grid = [one.job.sae for one in planned if one.sweep.group == "grid"]
    sizes, active = {sae.d_sae for sae in grid}, {sae.k for sae in grid}
    probes, explanations = (PAPER.config("gpt2", name) for name in ("probes", "explanations"))
    assert {probes.latents, explanations.d_sae} <= sizes
    assert {probes.k, explanations.k} <= active
    assert PAPER.config("gpt2", "compute_frontier").k in active
    assert PAPER.config("gpt2", "compute_frontier").d_in == 768
    assert PAPER.config("gpt2", "convergence").k in active
    released = PAPER.config("gpt2", "released_autoencoders")
    assert released.site == trained_on.site
    at_site = trained_on.site.replace("resid_post", "hook_resid_post")
    assert {one.id for one in released.autoencoders.values()} == {at_site}
    for name in EXPERIMENTS:
        assert getattr(PAPER.config("gpt2", name), "model", "gpt2") == "gpt2", name


def test_no_activation_of_the_hubs_text_is_needed_twice():
    stage = yaml.safe_load((ROOT / "shared/hub/dvc.yaml").read_text())["stages"]["corpus_gpt2"]
    paper = yaml.safe_load((ROOT / "papers/topk_scaling/dvc.yaml").read_text())["stages"]
    (made,) = stage["outs"][0]
    needed = [one.replace("${profile}", "gpt2") for one in paper["train_autoencoders"]["deps"]]
    assert made in needed
    corpus = yaml.safe_load((ROOT / "shared/hub/params.yaml").read_text())["gpt2"]["corpus"]
    inside, body = corpus["length"] - 1, LENGTH - 1
    contexts = int(0.995 * SPLITS["train"] * corpus["tokens"] / inside) * (inside // body)
    config = PAPER.config("gpt2", "autoencoders")
    assert config.model == corpus["tokenizer"]
    for batch in {one.batch for one in plan(config, 768, 0)}:
        assert config.vectors % batch == 0
        assert config.vectors <= contexts * body // batch * batch


@pytest.fixture
def full_size(monkeypatch):
    """GPT-2 small, of which only the sizes are known."""
    model = full_size_gpt2()
    monkeypatch.setattr(autoencoders, "load", lambda *_: model)
    return model


ON_A_GPU = Run(0, "cuda", max_gpu_memory_gb=10.0)


def test_a_gpu_of_ten_gigabytes_suffices_for_training_by_estimate(full_size):
    """That the estimate is right can only be seen on a GPU."""
    found = autoencoders.readings(PAPER.config("gpt2", "autoencoders"), ON_A_GPU)
    assert 8 < max(one.memory(one.rows(10.0)) for one in found) / 1e9 < 10
    assert all(one.rows(10.0) == one.batch for one in found)  # none is divided


def test_a_gpu_of_ten_gigabytes_suffices_for_scores_by_estimate(full_size):
    """The autoencoders of a pass, activations of the widest, and eight tensors of logits."""
    together = PAPER.config("gpt2", "scores").together
    shares = autoencoders.all_shares(PAPER.config("gpt2", "autoencoders"), ON_A_GPU)
    planned = [one for share in shares for one in share]
    planned = [one for one in planned if one.sweep.group not in scores.ONLINE]
    vectors = scores.CONTEXTS_AT_ONCE * LENGTH
    for site in {one.job.site for one in planned}:
        own = [one for one in planned if one.job.site == site]
        count = -(-len(own) // together)
        for some in (own[part::count] for part in range(count)):
            # Gated autoencoders have a second encoder.
            weights = sum((3 if one.sweep.method == "gated" else 2) * one.weights for one in some)
            activations = 5 * vectors * max(one.job.sae.d_sae for one in some)
            logits = 8 * vectors * 50257
            assert 4e-9 * (weights + activations + logits) + 0.7 + 0.6 < 9, site
