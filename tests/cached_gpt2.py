"""What profile gpt2 fetches, without a hub: a small random GPT-2 in its cache, and token shards."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_tokenizer import WORDS, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from shared.corpus import shards
from shared.corpus.__main__ import app
from shared.corpus.shards import corpus_folder
from shared.corpus.tokenizer import save_tokenizer

WIDTH, LAYERS = 8, 12
TEXT = ["a", "cat", "and", "dog", "sat,", "ran."]


@contextmanager
def offline(root):
    """Let the hub's cache be in root/hub, and the token shards in `root`; yield what to patch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROOT", root)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
        yield patch


def write_model(root, length, name="gpt2", seed=0, words=WORDS, tokenizer=True):
    """Write a random GPT-2 to the cache as a model of the hub that reads contexts of `length`."""
    repository = root / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shape = {"n_embd": WIDTH, "n_head": 2, "n_layer": LAYERS, "n_positions": length}
    ends = {"bos_token_id": words - 1, "eos_token_id": words - 1}
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(vocab_size=words, **shape, **ends)).save_pretrained(snapshot)
    if tokenizer:
        save_tokenizer(tiny_tokenizer(), snapshot / "tokenizer.json")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def write_shards(root, rows, length, *options):
    """Make the token shards of the profile from rows of random words, by the command."""
    random = np.random.default_rng(0)
    text = root / "text" / "rows.jsonl"
    text.parent.mkdir()
    lines = [json.dumps({"text": " ".join(random.choice(TEXT, 12))}) for _ in range(rows)]
    text.write_text("\n".join(lines) + "\n")
    command = ["shards", str(text.parent), "--tokenizer", "gpt2", "--length", str(length)]
    into = ["--into", str(corpus_folder("gpt2"))]
    result = CliRunner().invoke(app, [*command, *options, *into])
    assert result.exit_code == 0, result.output
