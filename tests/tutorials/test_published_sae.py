"""The tutorial on GPT-2, run from its first to its last line on a tiny model and autoencoder."""

import json
import runpy
import sys

import pytest

from shared.corpus.tokenizer import train_tokenizer
from shared.language_models.train import ModelConfig, create
from shared.saes.standard import StandardConfig
from shared.saes.weights import save_sae

TEXT = "When Mary and John went to the store, John gave a drink to. Yesterday I met"


@pytest.fixture
def folders(tmp_path):
    """Return the folders of an autoencoder and of a model to which every word is one token."""
    tokenizer = train_tokenizer([TEXT, *(f"{word} " * 20 for word in TEXT.split())], 400)
    shape = {"layers": 2, "d_model": 16, "d_mlp": 32, "heads": 2, "activation": "gelu_new"}
    network = create(ModelConfig(**shape, tied=True, steps=1, seed=0), 400, 64)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    sae = StandardConfig(d_in=16, d_sae=24, l1=0, seed=0).create()
    save_sae(tmp_path / "sae", sae.export(), {"hook_name": "blocks.1.hook_resid_pre"})
    return tmp_path / "sae", tmp_path / "model"


def test_every_part_runs_and_leaves_figures_and_numbers(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published_sae", *map(str, folders), str(tmp_path)])
    runpy.run_module("tutorials.published_sae", run_name="__main__")
    folder = tmp_path / "results" / "tutorials" / "gpt2"
    names = {path.name for path in (folder / "figures").iterdir()}
    figures = ("indirect_object_patching", "steering_cost")
    assert names == {f"{name}.{kind}" for name in figures for kind in ("png", "svg", "json")}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["patching"]["all_features"] is not None
    assert set(metrics["attribution"]["rank_correlation"]) == {"direct", "gradient", "integrated"}
    said = capsys.readouterr().out
    assert "logit of ' Mary' less that of ' John'" in said
    assert "'Yesterday I met' with feature" in said
