"""Profile gpt2, end to end, on a random GPT-2 of twelve layers that stands in the hub's cache."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from cached_gpt2 import offline, write_model, write_shards
from full_size import full_size_gpt2
from tiny_tokenizer import WORDS

from papers.gated_sae import autoencoders, site_autoencoders
from papers.gated_sae.__main__ import EXPERIMENTS
from shared.corpus.build import SPLITS
from shared.corpus.shards import corpus_folder, load_contexts
from shared.corpus.tokenizer import END_OF_TEXT
from shared.experiment import Run
from shared.files import ROOT
from shared.language_models.load import load
from shared.stages import Paper, rounded

PAPER = Paper("gated_sae", EXPERIMENTS)
LENGTH = 16
SMALL = {
    "autoencoders": {"latents": 128, "steps": 6, "batch": 16, "resample_inputs": 32, "seeds": 1}
    | {"rescaled_steps": 2, "sae_lens": [], "sae_lens_path": []},
    "site_autoencoders": {"latents": 16, "steps": 6, "batch": 16, "resample_inputs": 32},
    "scores": {"contexts": 3, "site_contexts": 2},
    "inference_time_optimisation": {"targets": [1, 2], "contexts": 1},
    "jumprelu_equivalence": {"contexts": 2},
    "activation_shapes": {"samples": 1000, "thresholds": 3},
    "rating_statistics": {"studies": 20, "bootstrapped": 4, "resamples": 20}
    | {"stand_in": {"contexts": 6, "pairs": 4, "least": 2}},
}
"""What makes the profile small; beside it, each front keeps two of its penalties."""


def experiment(name):
    return importlib.import_module(f"papers.gated_sae.{name}").EXPERIMENT


def configuration(name):
    block = PAPER.block("gpt2", name) | SMALL.get(name, {})
    for method in block.get("methods", {}).values():
        method["penalties"] = method["penalties"][1:3]
    return experiment(name).config(**block)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The hub's cache with a "gpt2", and the token shards of the profile, made by the command."""
    root = tmp_path_factory.mktemp("gpt2_profile")
    with offline(root):
        write_model(root, LENGTH)
        write_shards(root, 400, LENGTH)
        yield root


@pytest.fixture(scope="module")
def trained(root):
    """The arrays of all experiments."""
    found = {}
    for name in EXPERIMENTS:
        inputs = {needed: found[needed] for needed in EXPERIMENTS[name]}
        run = Run(0, "cpu", inputs, root / "artifacts" / "gated_sae" / "gpt2")
        found[name] = dict(experiment(name).train(configuration(name), run))
    return found


def test_the_text_is_the_models_own(root):
    model = load("gpt2")
    end = model.tokenizer.token_to_id(END_OF_TEXT)
    assert end == model.d_vocab - 1
    for split in SPLITS:
        assert (
            load_contexts(corpus_folder("gpt2") / f"{split}.safetensors").tokens[:, 0] == end
        ).all()


def test_everything_is_trained_and_scored_on_the_model(trained):
    scores = trained["scores"]
    assert set(scores["model"]) == {"gpt2"}
    fronts = scores["site"] == "mlp_post.6"
    panels = {
        f"{kind}.{layer}" for kind in ("resid_post", "mlp_out", "attn_out") for layer in (2, 6, 10)
    }
    assert set(scores["site"][~fronts]) == panels
    methods = PAPER.block("gpt2", "autoencoders")["methods"]
    assert set(scores["method"][fronts]) == {*methods, "rescaled"}
    assert set(scores["method"][~fronts]) == {"baseline", "gated"}
    assert fronts.sum() == 9 * 2
    assert (~fronts).sum() == 9 * 2 * 2
    for key in ("l0", "fvu", "spliced"):
        assert np.isfinite(scores[key]).all(), key
    assert scores["loss"][0] == pytest.approx(np.log(WORDS), rel=0.1)  # of a random model


def test_fronts_and_panels_are_read_apart(trained):
    assert set(trained["sites"]["site"]) == set(trained["scores"]["site"]) - {"mlp_post.6"}
    for name in ("pareto", "shrinkage", "ablations", "rescaled_and_shifted", "jumprelu_front"):
        assert set(trained[name]["site"]) == {"mlp_post.6"}, name
    for name in ("inference_time_optimisation", "jumprelu_equivalence"):
        assert all("_mlp_post.6_" in str(one) for one in trained[name]["name"]), name
    assert set(trained["alive"]["one_site"]) == {"mlp_post.6"}
    assert set(trained["alive"]["many_site"]) == set(trained["sites"]["site"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what so small a run has none of
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_evaluates_and_draws(trained, name):
    evaluation = experiment(name).evaluate(configuration(name), trained[name])
    assert evaluation.metrics
    assert set(evaluation.figures) == {figure.name for figure in experiment(name).figures}
    plots = json.loads(json.dumps(rounded(evaluation.figures)))
    for figure in experiment(name).figures:
        figure.draw(plots[figure.name])


def test_the_stage_of_the_hub_makes_what_the_paper_reads():
    stage = yaml.safe_load((ROOT / "shared/hub/dvc.yaml").read_text())["stages"]["corpus_gpt2"]
    paper = yaml.safe_load((ROOT / "papers/gated_sae/dvc.yaml").read_text())["stages"]
    (made,) = stage["outs"][0]
    assert made in [
        one.replace("${profile}", "gpt2") for one in paper["train_autoencoders"]["deps"]
    ]
    assert stage["cmd"].endswith(f"--into {made}")
    corpus = yaml.safe_load((ROOT / "shared/hub/params.yaml").read_text())["gpt2"]["corpus"]
    assert all(f"${{gpt2.corpus.{key}}}" in stage["cmd"] for key in corpus)
    vectors = 0.995 * SPLITS["train"] * corpus["tokens"] * (1 - 1 / corpus["length"])
    for name in ("autoencoders", "site_autoencoders"):
        config = PAPER.config("gpt2", name)
        assert config.model == corpus["tokenizer"] == "gpt2"
        assert config.steps * config.batch <= vectors, name


@pytest.mark.parametrize("part", [autoencoders, site_autoencoders], ids=["fronts", "panels"])
def test_a_gpu_of_ten_gigabytes_suffices_by_estimate(monkeypatch, part):
    """That the estimate is right can only be seen on a GPU."""
    monkeypatch.setattr(part, "load", lambda *_: full_size_gpt2())
    config = PAPER.config("gpt2", part.__name__.rpartition(".")[2])
    run = Run(0, "cuda", max_gpu_memory_gb=10.0)
    found = part.readings(config, run)
    assert max(one.memory(one.batch) for one in found) < 9.5e9
    unlimited = part.readings(config, replace(run, max_gpu_memory_gb=None))
    assert len(found) == len(unlimited)  # none is in parts
