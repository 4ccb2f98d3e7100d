"""Training by a recipe: what is written, resuming, SAELens' view of it, and bad recipes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import shared.cli
from shared.corpus.tokenizer import save_tokenizer, train_tokenizer
from shared.errors import UserError
from shared.features import known
from shared.features.dictionary import open_dictionary
from shared.features.train import ARCHITECTURES, LivePlot, Recipe, read_recipe, train
from shared.language_models.train import ModelConfig, create
from shared.saes.weights import CONFIG, TENSORS

SENTENCES = ("the cat sat on the mat. ", "a dog ran to the river. ", "one and two are three. ")
SAE = {
    "standard": {"l1": 0.01},
    "gated": {"l1": 0.01},
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "jumprelu": {"l0": 0.01},
    "prolu": {"l1": 0.01},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny language model, and some text."""
    folder = tmp_path_factory.mktemp("place")
    config = ModelConfig(
        layers=2, d_model=8, d_mlp=12, heads=2, activation="gelu_new", tied=True, steps=1, seed=0
    )
    create(config, 300, 32).save_pretrained(folder / "model")
    save_tokenizer(train_tokenizer(SENTENCES, 300), folder / "model" / "tokenizer.json")
    picked = np.random.default_rng(0).integers(0, 3, 900)
    (folder / "text.txt").write_text("".join(SENTENCES[i] for i in picked))
    return folder


@pytest.fixture
def recipe(place):
    def make(**changes):
        fields = {
            "model": str(place / "model"),
            "hook": "blocks.0.resid_post",
            "text": str(place / "text.txt"),
            "length": 16,
            "architecture": "topk",
            "sae": {"d_sae": 12, "k": 3},
            "batch": 32,
            "steps": 12,
            "lr": 0.01,
        }
        return Recipe(**fields | changes)

    return make


@pytest.mark.parametrize(
    ("architecture", "normalised"),
    [*zip(ARCHITECTURES, [False, True] * 3, strict=True), ("topk", True)],
)
def test_every_architecture_opens_here_and_in_sae_lens(recipe, tmp_path, architecture, normalised):
    from sae_lens import SAE as SaeLens

    chosen = recipe(
        architecture=architecture, sae={"d_sae": 12, **SAE[architecture]}, normalised=normalised
    )
    train(chosen, tmp_path / "sae")
    dictionary = open_dictionary(str(tmp_path / "sae"))
    x = dictionary.activations(dictionary.tokens("the dog sat"))[0, 1:]
    theirs = SaeLens.load_from_disk(tmp_path / "sae")
    f = theirs.encode(x)
    torch.testing.assert_close(dictionary.encode(x), f, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(x), x), theirs.decode(f), atol=1e-5, rtol=1e-5
    )


def test_a_training_leaves_the_autoencoder_its_numbers_and_a_card(recipe, tmp_path):
    result = train(recipe(), tmp_path / "sae")
    names = {CONFIG, TENSORS, known.DENSITY, "training.png", "evaluation.json", "card.md"}
    assert {path.name for path in (tmp_path / "sae").iterdir()} == names
    assert list(result.history["step"]) == list(range(1, 13))
    assert result.evaluation.l0 == 3
    density = known.density(open_dictionary(str(tmp_path / "sae")))
    torch.testing.assert_close(density.sum(), torch.tensor(3.0))  # L0 is the sum of densities
    assert (density < 1e-9).double().mean() == result.evaluation.dead
    stored = json.loads((tmp_path / "sae" / "evaluation.json").read_text())
    assert stored["evaluation"]["fvu"] == result.evaluation.fvu
    assert "| l0 | 3 | 5 to 200 |" in (tmp_path / "sae" / "card.md").read_text()
    recipe_there = stored["provenance"]["recipe"]
    assert Recipe(**recipe_there) == recipe()
    with pytest.raises(UserError, match="holds an autoencoder"):
        train(recipe(), tmp_path / "sae")


def test_training_reduces_the_loss_and_reconstructs(recipe, tmp_path):
    result = train(recipe(steps=90, batch=64, sae={"d_sae": 64, "k": 6}), tmp_path / "sae")
    assert result.history["loss"][-1] < 0.3 * result.history["loss"][0]
    assert result.evaluation.fvu < 0.3


def test_an_interrupted_training_goes_on_to_the_same_bytes(recipe, tmp_path, monkeypatch):
    train(recipe(), tmp_path / "whole")
    drawn = []

    def interrupt(self, history):
        drawn.append(len(history["step"]))
        if len(drawn) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LivePlot, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), tmp_path / "sae", every_seconds=0.0)
    assert drawn == [1, 2, 3, 4, 5]
    assert not (tmp_path / "sae" / CONFIG).exists()
    with pytest.raises(UserError, match="run with other parameters"):
        train(recipe(lr=0.02), tmp_path / "sae")
    result = train(recipe(), tmp_path / "sae")
    assert len(result.history["step"]) == 12
    whole, resumed = (load_file(tmp_path / name / TENSORS) for name in ("whole", "sae"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_more_steps_than_text_is_one_line(recipe, tmp_path):
    with pytest.raises(UserError, match="without repetition"):
        train(recipe(steps=10**6), tmp_path / "sae")


BAD = {
    "k: 13 is more": ({"sae": {"d_sae": 12, "k": 13}}, "k 13 is more than d_sae 12"),
    "no k": ({"sae": {"d_sae": 12}}, "topk: sae.k: field required"),
    "wrong name": ({"sae": {"d_sae": 12, "k": 3, "l1": 1}}, "topk: sae.l1: extra inputs"),
    "d_in": ({"sae": {"d_sae": 12, "k": 3, "d_in": 8}}, "sae.d_in follows from the rest"),
    "steps": ({"steps": 0}, "steps: input should be greater than or equal to 1, not 0"),
    "architecture": ({"architecture": "vanilla"}, "architecture: input should be 'standard'"),
    "unknown": ({"stepz": 3}, "stepz: extra inputs are not permitted"),
    "hook": ({"hook": "blocks.0.resid"}, "no site 'blocks.0.resid'"),
    "tl hook": ({"hook": "blocks.0.hook_z"}, "no hook 'blocks.0.hook_z'"),
    "sae": ({"sae": 3}, "mappings from fields"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_one_line(recipe, tmp_path, case):
    changes, line = BAD[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe().model_dump(mode="json"), **changes}))
    with pytest.raises(UserError) as found:
        read_recipe(path, {})
    assert line in str(found.value)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(str(path))


def test_options_change_a_recipe_or_are_one(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe().model_dump(mode="json")))
    changed = read_recipe(path, {"steps": 7, "sae.k": 2})
    assert changed == recipe(steps=7, sae={"d_sae": 12, "k": 2})
    fields = recipe().model_dump(exclude_defaults=True) | {"sae.d_sae": 12, "sae.k": 3}
    del fields["sae"]
    assert read_recipe(None, fields) == recipe()
    with pytest.raises(UserError, match=r"^model: field required"):
        read_recipe(None, {})
    with pytest.raises(UserError, match=r"no recipe .*No such file"):
        read_recipe(tmp_path / "none.yaml", {})


def test_the_bundled_recipe_is_valid():
    path = shared.cli.ROOT / "shared" / "saes" / "bundled" / "mini_gpt2_resid_2.yaml"
    chosen = read_recipe(path, {})
    assert (chosen.model, str(chosen.site())) == ("mini_gpt2", "blocks.2.resid_post")
    assert chosen.epsilon == 6.25e-10


def test_the_command(place, tmp_path):
    options = {
        "--model": place / "model",
        "--hook": "blocks.1.hook_resid_pre",
        "--text": place / "text.txt",
        "--architecture": "standard",
        "--d-sae": 12,
        "--set": "sae.l1=0.01",
        "--batch": 32,
        "--steps": 3,
        "--lr": 0.01,
        "--into": tmp_path / "sae",
    }
    words = [str(word) for option in options.items() for word in option]
    result = CliRunner().invoke(shared.cli.app, ["train", *words, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["d_sae"] == 12
    again = CliRunner().invoke(shared.cli.app, ["train", *words])
    assert (again.exit_code, again.stdout) == (2, "")
    assert len(again.stderr.splitlines()) == 1
    bad = CliRunner().invoke(shared.cli.app, ["train", *words, "--set", "k"])
    assert (bad.exit_code, bad.stderr) == (
        2,
        "sae: --set 'k' is no FIELD=VALUE, such as sae.k=16\n",
    )


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_command_modules_are_light(name):
    code = f"import sys, shared.features.commands.{name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
