"""Profile gpt2, end to end, on two random GPT-2 of twelve layers that stand in the hub's cache.

All but `splitting`, whose maps take as long as everything else, and the drawing of figures:
nox -s hub does both.
"""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from cached_gpt2 import offline, write_model, write_shards
from full_size import full_size_gpt2
from tiny_tokenizer import WORDS, tiny_tokenizer

from papers.towards_monosemanticity import dictionaries, firings
from papers.towards_monosemanticity.__main__ import EXPERIMENTS
from papers.towards_monosemanticity.effects import ablation, only
from papers.towards_monosemanticity.feature_browser import Settings, content
from papers.towards_monosemanticity.logit_weights import logit_weights
from papers.towards_monosemanticity.loss_recovered import mean_neuron
from shared.activations.sites import Site, read, replaced_logits
from shared.corpus import shards
from shared.corpus.build import SPLITS
from shared.corpus.documents import LABELS
from shared.corpus.shards import corpus_folder
from shared.corpus.slices import WRITERS
from shared.corpus.tokenizer import END_OF_TEXT
from shared.errors import UserError
from shared.experiment import Run
from shared.files import ROOT, write_json
from shared.stages import Paper, rounded

PAPER = Paper("towards_monosemanticity", EXPERIMENTS)
RUN = tuple(name for name in EXPERIMENTS if name != "splitting")
LENGTH, NEURONS = 32, 32
SMALL = {
    "dictionaries": {"steps": 40, "batch": 32, "resample_inputs": 64},
    "language_models": {"contexts": 4},
    "architectural_approaches": {"restarts": 1, "steps": 5},
    "loss_recovered": {"contexts": 4},
    "context_features": {"resamples": 10},
    "effects": {"sequences": 3, "samples": 2, "length": 3, "resamples": 10},
    "universality": {"minimum": 5, "neuron_contexts": 8, "token_minimum": 3},
    "base64_splitting": {"minimum": 5},
    "motifs": {"minimum": 5},
    "automata": {"minimum": 5},
    "explainability": {"units": 3, "common": 1},
    "shuffled_model": {"units": 3, "common": 1},
}
"""What makes the profile small; beside it, dictionaries have 1/128 of the features."""


def experiment(name):
    return importlib.import_module(f"papers.towards_monosemanticity.{name}").EXPERIMENT


def configuration(name):
    block = PAPER.block("gpt2", name) | SMALL.get(name, {})
    for one in block.get("dictionaries", {}).values():
        one["d_sae"] //= 128
    return experiment(name).config(**block)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The hub's cache with both models, and the token shards of the profile, with all labels.

    The second model has no tokenizer of its own, and more words than the first one's tokenizer.
    """
    root = tmp_path_factory.mktemp("gpt2_profile")
    other = PAPER.config("gpt2", "dictionaries").models.b
    with offline(root):
        write_model(root, 2 * LENGTH)
        write_model(root, 2 * LENGTH, other, seed=1, words=WORDS + 8, tokenizer=False)
        write_shards(root, 1500, LENGTH, "--planted", "0.02")
        yield root


@pytest.fixture(scope="module")
def folder(root):
    return root / "artifacts" / "towards_monosemanticity" / "gpt2"


@pytest.fixture(scope="module")
def trained(folder):
    """The arrays of all experiments but `splitting`."""
    found = {}
    for name in RUN:
        inputs = {needed: found[needed] for needed in EXPERIMENTS[name]}
        found[name] = experiment(name).train(configuration(name), Run(0, "cpu", inputs, folder))
    return found


def test_models_and_site_are_those_of_the_profile(trained, folder):
    a, b, s = (dictionaries.language_model(which, folder) for which in dictionaries.LETTERS)
    assert (a.name, b.name) == tuple(PAPER.block("gpt2", "dictionaries")["models"].values())
    assert a.n_layers == b.n_layers == 12
    assert b.tokenizer.to_str() == a.tokenizer.to_str()
    for one, other in ((a, b), (a, s)):
        first, second = (m.network.transformer.h[6].mlp.c_fc.weight for m in (one, other))
        assert not torch.equal(first, second)
    assert dictionaries.site(folder) == Site("mlp_post", 6)
    about = json.loads((folder / "dictionaries" / "b1" / "cfg.json").read_text())
    assert about["metadata"]["hook_name"] == "blocks.6.mlp.hook_post"
    assert about["metadata"]["model_name"] == b.name


def test_neurons_fire_above_zero_and_their_mean_has_the_rest(trained, folder):
    split, model = firings.load_split(folder, "score"), dictionaries.language_model("a", folder)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    site = dictionaries.site(folder)
    neurons = read(model, tokens, [site])[site]
    assert (neurons < 0).float().mean() > 0.3  # of a GELU
    found = split.neurons("a").toarray().reshape(neurons.shape)
    np.testing.assert_allclose(found[:, 1:], neurons[:, 1:].relu(), atol=1e-6)
    assert not found[:, 0].any()
    mean = mean_neuron(model, site, split.tokens)
    torch.testing.assert_close(mean, neurons[:, 1:].mean((0, 1)), rtol=1e-4, atol=1e-7)
    encoded = dictionaries.load_dictionary(folder, "a1").encode(neurons)
    features = split.features("a1").toarray().reshape(encoded.shape)
    np.testing.assert_allclose(features[:, 1:], encoded[:, 1:], atol=1e-6)


def test_the_text_has_every_label_and_ends_in_the_tokenizers_own_token(trained, folder):
    for name in firings.SPLITS:
        split = firings.load_split(folder, name)
        assert split.end_of_text == tiny_tokenizer().token_to_id(END_OF_TEXT) == WORDS - 1
        assert {LABELS[label] for label in np.unique(split.labels)} == {"text", *WRITERS}


def test_words_that_the_tokenizer_lacks_have_no_logit_weight(trained, folder):
    b = dictionaries.language_model("b", folder)
    assert b.d_vocab == WORDS + 8
    assert logit_weights(b, torch.eye(NEURONS), 6).shape == (NEURONS, WORDS)


def test_a_feature_of_a_middle_layer_is_ablated_at_every_token(trained, folder):
    model, site = dictionaries.language_model("a", folder), dictionaries.site(folder)
    weights = only(dictionaries.load_dictionary(folder, "a1"), [3])
    tokens = torch.randint(0, WORDS, (3, 9), generator=torch.Generator().manual_seed(0))

    def without(neurons):
        return neurons - weights.encode(neurons) @ weights.W_dec

    def log_probabilities(logits):
        return logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]

    changed = replaced_logits(model, tokens, site, without)
    expected = log_probabilities(changed) - log_probabilities(model.logits(tokens))
    found = ablation(model, site, weights, tokens, torch.ones(3, 8, dtype=torch.bool))
    torch.testing.assert_close(found, expected.flatten(), atol=1e-5, rtol=1e-4)
    assert found.abs().max() > 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what so small a run has none of
@pytest.mark.parametrize("name", RUN)
def test_every_experiment_evaluates(trained, name):
    evaluation = experiment(name).evaluate(configuration(name), trained[name])
    assert evaluation.metrics
    assert set(evaluation.figures) == {figure.name for figure in experiment(name).figures}
    json.dumps(rounded(evaluation.figures), allow_nan=False)


def test_the_figure_says_how_many_layers_the_models_have(trained):
    found = experiment("language_models").evaluate(
        configuration("language_models"), trained["language_models"]
    )
    (figure,) = experiment("language_models").figures
    (panel,) = figure.draw(rounded(found.figures)["language_models"]).axes
    assert "A, 12 layers" in [label.get_text() for label in panel.get_yticklabels()]


def test_the_feature_browser_reads_the_site(trained, folder):
    shown = content(folder, Settings(features=4, per_label=1, texts=2, common=1, logits=4))
    assert len(shown["features"]) == 4
    effects = [
        e for f in shown["features"] for g in f["groups"] for x in g["examples"] for e in x["e"]
    ]
    assert np.isfinite(effects).all()


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_model_that_is_not_to_be_had_is_said_before_anything_trains(root, tmp_path, which):
    config = configuration("dictionaries")
    models = config.models.model_copy(update={which: "no-one/no-model"})
    config = config.model_copy(update={"models": models})
    with pytest.raises(UserError, match="no language model 'no-one/no-model' here"):
        dictionaries.run(config, Run(0, "cpu", folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_layer_that_a_model_lacks_is_said_before_anything_trains(root, tmp_path):
    config = configuration("dictionaries").model_copy(update={"site": "blocks.12.mlp_post"})
    with pytest.raises(UserError, match=r"has no blocks.12.mlp_post: .* LAYER from 0 to 11"):
        dictionaries.run(config, Run(0, "cpu", folder=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("site", "message"),
    [("blocks.6.resid_post", "holds no neurons: write blocks.LAYER.mlp_post"), ("six", "no site")],
)
def test_a_site_without_neurons_is_refused(site, message):
    with pytest.raises(ValueError, match=message):
        configuration("dictionaries").model_validate(
            configuration("dictionaries").model_dump() | {"site": site}
        )


@pytest.mark.parametrize("content", [None, {"a1": {"model": "a", "d_sae": 8}}])
def test_without_dictionaries_or_with_those_of_an_earlier_version_there_is_one_line(
    tmp_path, content
):
    if content:
        write_json(tmp_path / "dictionaries" / "settings.json", content)
    for asked in (dictionaries.site, dictionaries.settings):
        with pytest.raises(UserError, match=r"no dictionaries of this version at .*: train"):
            asked(tmp_path)


def test_the_stage_of_the_hub_makes_what_the_paper_reads():
    stage = yaml.safe_load((ROOT / "shared/hub/dvc.yaml").read_text())["stages"]["corpus_gpt2"]
    paper = yaml.safe_load((ROOT / "papers/towards_monosemanticity/dvc.yaml").read_text())["stages"]
    (made,) = stage["outs"][0]
    for name in ("train_dictionaries", "train_experiments"):
        assert made in [one.replace("${profile}", "gpt2") for one in paper[name]["deps"]]
    corpus = yaml.safe_load((ROOT / "shared/hub/params.yaml").read_text())["gpt2"]["corpus"]
    config = PAPER.config("gpt2", "dictionaries")
    assert config.models.a == corpus["tokenizer"]
    assert corpus["planted"] > 0
    inside = 1 - 1 / corpus["length"]
    assert config.steps * config.batch <= 0.995 * SPLITS["train"] * corpus["tokens"] * inside
    analysed = PAPER.config("gpt2", "firings").contexts * corpus["length"]
    assert all(analysed <= 0.95 * SPLITS[split] * corpus["tokens"] for split in firings.SPLITS)


def test_a_gpu_of_ten_gigabytes_suffices_for_training_by_estimate(monkeypatch):
    """That the estimate is right can only be seen on a GPU."""
    model = full_size_gpt2()
    monkeypatch.setattr(dictionaries, "load_model", lambda *_: model)
    config = PAPER.config("gpt2", "dictionaries")
    found = dictionaries.readings(config, Run(0, "cuda", max_gpu_memory_gb=10.0))
    assert {one.label for one in found} == {
        f"dictionaries {s}" for s in dictionaries.sweeps(config)
    }
    assert len(found) == len(dictionaries.sweeps(config))  # none is in parts
    assert max(one.memory(one.batch) for one in found) < 9.5e9


def test_shards_of_another_tokenizer_are_refused(root, tmp_path, monkeypatch):
    """Ids that model b does not know would be read as other words."""
    copied = tmp_path / "artifacts" / "shared" / "gpt2" / "corpus"
    shutil.copytree(corpus_folder("gpt2"), copied)
    monkeypatch.setattr(shards, "ROOT", tmp_path)
    split = shards.load_contexts(copied / "train.safetensors")
    split.tokens[:, 1] = WORDS + 100
    shards.save_contexts(copied / "train.safetensors", split, {})
    with pytest.raises(UserError, match="build the corpus with the model's own tokenizer"):
        dictionaries.run(configuration("dictionaries"), Run(0, "cpu", folder=tmp_path / "gpt2"))
