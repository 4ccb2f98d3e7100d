import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.corpus.shards import Contexts
from shared.corpus.tokenizer import save_tokenizer, train_tokenizer
from shared.errors import Diverged
from shared.files import read_json
from shared.language_models import train
from shared.language_models.load import load
from shared.language_models.train import (
    ModelConfig,
    batch_indices,
    create,
    learning_rate,
    mean_loss,
    save_model,
    train_model,
)

VOCABULARY, LENGTH = 40, 8


def config(**changes):
    settings = {
        "layers": 1,
        "d_model": 8,
        "d_mlp": 16,
        "heads": 2,
        "activation": "relu",
        "tied": False,
        "steps": 12,
        "batch": 4,
        "lr": 0.01,
        "warmup": 3,
        "seed": 0,
    }
    return ModelConfig(**settings | changes)


@pytest.fixture
def contexts():
    """Every token is the one before it plus one."""
    first = np.arange(18)[:, None]
    tokens = ((first + np.arange(LENGTH)) % VOCABULARY).astype(np.uint16)
    return Contexts(tokens, np.zeros((18, LENGTH), np.uint8), np.zeros((18, LENGTH), np.int32))


def same(first, second):
    return all(
        torch.equal(one, other)
        for one, other in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize(("contexts", "batch"), [(18, 4), (16, 4), (5, 5), (7, 1)])
def test_an_epoch_takes_no_context_twice_and_the_next_has_another_order(contexts, batch):
    per_epoch = contexts // batch
    epochs = [
        np.concatenate(
            [batch_indices(3, contexts, batch, e * per_epoch + s) for s in range(per_epoch)]
        )
        for e in range(2)
    ]
    for epoch in epochs:
        assert len(np.unique(epoch)) == len(epoch) == per_epoch * batch
        assert set(epoch) <= set(range(contexts))
    assert (epochs[0] != epochs[1]).any()
    assert (batch_indices(4, contexts, batch, 0) != epochs[0][:batch]).any() or contexts == batch


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(config(steps=103, warmup=3), step) for step in range(103)]
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[3] == pytest.approx(0.01)
    assert all(late < early for early, late in pairwise(rates[3:]))
    assert learning_rate(config(steps=103, warmup=3), 103) == pytest.approx(0.001)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first, state = create(config(), VOCABULARY, LENGTH), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, create(config(), VOCABULARY, LENGTH))
    assert not same(first, create(config(seed=1), VOCABULARY, LENGTH))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing of the caller's randomness is used


def test_training_learns_what_is_there(contexts, tmp_path):
    settings = config(steps=60, batch=18)
    before = mean_loss(create(settings, VOCABULARY, LENGTH), contexts)
    assert before == pytest.approx(math.log(VOCABULARY), abs=0.1)
    model = train_model(settings, contexts, VOCABULARY, tmp_path, "tiny")
    assert mean_loss(model, contexts) < before / 2


def test_mean_loss_is_that_of_transformers(contexts):
    model = create(config(), VOCABULARY, LENGTH).eval()
    tokens = torch.from_numpy(contexts.tokens.astype(np.int64))
    theirs = model(tokens, labels=tokens).loss.item()
    assert mean_loss(model, contexts, batch=7) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("stopped_at", [5, 6, 11])
def test_a_stopped_run_goes_on_to_the_same_bytes(contexts, tmp_path, monkeypatch, stopped_at):
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole = train_model(config(), contexts, VOCABULARY, tmp_path / "whole", "tiny")
    ran = []

    def stopping(settings, step):
        if not ran and step == stopped_at:
            ran.append("stopped")
            raise KeyboardInterrupt
        if ran:
            ran.append(step)
        return learning_rate(settings, step)

    monkeypatch.setattr(train, "learning_rate", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_model(config(), contexts, VOCABULARY, tmp_path / "stopped", "tiny")
    resumed = train_model(config(), contexts, VOCABULARY, tmp_path / "stopped", "tiny")
    assert ran[1] == stopped_at // 2 * 2  # the last checkpoint
    assert same(resumed, whole)


def test_a_checkpoint_of_other_settings_is_not_taken_up(contexts, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    train_model(config(seed=1), contexts, VOCABULARY, tmp_path / "used", "tiny")
    fresh = train_model(config(), contexts, VOCABULARY, tmp_path / "fresh", "tiny")
    assert same(train_model(config(), contexts, VOCABULARY, tmp_path / "used", "tiny"), fresh)


def test_a_loss_that_is_not_finite_stops_the_run(contexts, tmp_path):
    with pytest.raises(Diverged, match=r"^tiny: the loss is (nan|inf) at step \d+$"):
        train_model(config(lr=1e38, warmup=0), contexts, VOCABULARY, tmp_path, "tiny")


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path, tied):
    model = create(config(tied=tied), VOCABULARY, LENGTH).eval()
    expected = {name: x.half().float() for name, x in model.state_dict().items()}
    save_model(model, tmp_path / "tiny", {"loss": 1.5})
    assert read_json(tmp_path / "tiny" / "training.json") == {"loss": 1.5}
    stored = load_file(tmp_path / "tiny" / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    assert ("lm_head.weight" in stored) != tied
    save_tokenizer(train_tokenizer(["text"], 257), tmp_path / "tokenizer.json")
    back = load(str(tmp_path / "tiny"))
    for name, tensor in back.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert back.d_mlp == 16
