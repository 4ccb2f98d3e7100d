import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from shared.activations.sites import Site, read
from shared.errors import UserError
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create, next_token_losses
from shared.metrics.downstream import Downstream
from shared.metrics.scores import score

SITE = Site("mlp_post", 0)
VOCABULARY, LENGTH, D = 11, 9, 12


class Identity:
    def encode(self, x, /):
        return x

    def decode(self, features, /):
        return features


class Zero(Identity):
    def decode(self, features, /):
        return torch.zeros_like(features)


class Noisy(Identity):
    """Encodes the positive half of each entry's deterministic perturbation."""

    def decode(self, features, /):
        return features * torch.linspace(0, 2, D)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        layers=2, d_model=8, d_mlp=D, heads=2, activation="relu", tied=False, steps=1, seed=0
    )
    network = create(config, VOCABULARY, LENGTH).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    return LanguageModel("tiny", network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


@pytest.fixture(scope="module")
def tokens(model):
    """Text that the model itself finds likely, so that ablation costs something."""
    torch.manual_seed(0)
    tokens = torch.zeros(10, 1, dtype=torch.int64)
    for _ in range(LENGTH - 1):
        probability = (2 * model.logits(tokens)[:, -1]).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probability, 1)], dim=1)
    return tokens.numpy().astype(np.uint16)


@pytest.fixture(scope="module")
def activations(model, tokens):
    return read(model, torch.from_numpy(tokens.astype(np.int64)), [SITE])[SITE]


@pytest.fixture(scope="module")
def mean(activations):
    return activations[:, 1:].mean((0, 1))


@pytest.fixture(scope="module")
def scores(model, tokens, mean):
    return score(model, SITE, [Identity(), Zero(), Noisy()], tokens, mean, batch=10)


def test_the_loss_is_that_of_the_model_on_all_predicted_tokens(scores, model, tokens):
    expected = next_token_losses(model.network, torch.from_numpy(tokens.astype(np.int64))).mean()
    assert scores.effect.loss == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_identity_recovers_everything(scores):
    assert scores.effect.recovered_zero[0] == pytest.approx(1, abs=1e-6)
    assert scores.effect.recovered_mean[0] == pytest.approx(1, abs=1e-6)
    assert scores.effect.kl[0] == pytest.approx(0, abs=1e-6)
    assert scores.fidelity[0].fvu == 0


def test_reconstructing_zero_recovers_nothing_from_zero_ablation(scores):
    assert scores.effect.spliced[1] == scores.effect.zero
    assert scores.effect.recovered_zero[1] == 0


def test_loss_recovered_is_the_paper_formula(scores):
    effect = scores.effect
    assert effect.recovered_zero[2] == pytest.approx(
        (effect.zero - effect.spliced[2]) / (effect.zero - effect.loss)
    )
    assert effect.recovered_mean[2] == pytest.approx(
        (effect.mean - effect.spliced[2]) / (effect.mean - effect.loss)
    )


def test_divergence_is_that_of_torch(scores, model, tokens, activations):
    ids = torch.from_numpy(tokens.astype(np.int64))
    replacement = activations * torch.linspace(0, 2, D)
    replacement[:, 0] = activations[:, 0]
    handle = model.network.transformer.h[0].mlp.act.register_forward_hook(lambda *_: replacement)
    try:
        q = model.logits(ids)[:, :-1].log_softmax(-1)
    finally:
        handle.remove()
    p = model.logits(ids)[:, :-1].log_softmax(-1)
    oracle = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
    assert scores.effect.kl[2] == pytest.approx(float(oracle), rel=1e-5)
    assert scores.effect.kl[2] > 1e-3


def test_position_zero_is_neither_replaced_nor_counted(model, mean):
    only_first = np.zeros((3, 2), dtype=np.uint16)  # token 1 is predicted from position 0 alone
    found = score(model, SITE, [Zero()], only_first, mean)
    assert found.effect.spliced[0] == found.effect.loss == found.effect.zero
    assert np.isnan(found.effect.recovered_zero[0])
    assert found.firings[0].vectors == 3


def test_sparsity_and_reconstruction_are_over_the_other_positions(scores, activations):
    inner = activations[:, 1:].flatten(0, 1).double()
    assert scores.firings[0].l0 == pytest.approx(float((inner > 0).double().sum(1).mean()))
    expected = inner.square().sum() / (inner - inner.mean(0)).square().sum()
    assert scores.fidelity[1].fvu == pytest.approx(float(expected.detach()), rel=1e-6)


def test_batches_give_what_everything_at_once_gives(scores, model, tokens, mean):
    parts = score(model, SITE, [Identity(), Zero(), Noisy()], tokens, mean, batch=3)
    np.testing.assert_allclose(parts.effect.spliced, scores.effect.spliced, rtol=1e-6)
    np.testing.assert_allclose(parts.effect.kl, scores.effect.kl, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(parts.firings[2].counts, scores.firings[2].counts)
    assert parts.fidelity[2].fvu == pytest.approx(scores.fidelity[2].fvu, rel=1e-6)


def test_ablations_put_zero_or_the_mean_at_every_other_position(model, tokens, activations):
    ids = torch.from_numpy(tokens.astype(np.int64))
    inner = activations[:, 1:]
    sums = Downstream(model, SITE, inner.mean((0, 1)))
    sums.update(ids, [torch.zeros_like(inner), inner.mean((0, 1)).expand_as(inner)])
    effect = sums.result()
    np.testing.assert_allclose(effect.spliced, [effect.zero, effect.mean], rtol=1e-6)


def test_a_result_needs_a_batch(model, mean):
    with pytest.raises(ValueError, match="no batch"):
        Downstream(model, SITE, mean).result()


def test_a_site_that_is_not_there_is_named(model, tokens, mean):
    with pytest.raises(UserError, match=r"blocks\.5\.mlp_post"):
        score(model, Site("mlp_post", 5), [Identity()], tokens, mean)
