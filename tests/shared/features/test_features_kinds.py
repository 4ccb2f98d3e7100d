"""Kinds of text: rules that count them, their features, and the share in steered samples."""

import argparse
import inspect
import json
import textwrap

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shared.cli
from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts, pack
from shared.corpus.slices import SHORT, documents
from shared.errors import UserError
from shared.features import kinds
from shared.features.dictionary import Dictionary, open_dictionary
from shared.features.kinds import detection, kind_share, most_specific, plain_prompts, share
from shared.features.steer import Sampling

PLAIN = inspect.getsource(argparse) + inspect.getsource(textwrap)


def written(kind, seed=0):
    texts = documents(kind, seed, [PLAIN], SHORT)
    return [next(texts).text for _ in range(20)]


@pytest.mark.parametrize("kind", sorted(kinds.RULES))
def test_a_rule_counts_its_kind_and_no_other(kind):
    assert share(kind, written(kind)) > 0.8
    assert share(kind, [PLAIN]) == 0
    alike = {kind, *kinds.MEANT.get(kind, ())}
    if kind == "chinese":
        alike.add("japanese")  # some words have no kana
    for other in set(kinds.RULES) - alike:
        assert share(kind, written(other)) < 0.01, other


def test_the_share_is_of_characters_without_white_space():
    assert share("russian", ["да no\n", "  "]) == 0.5
    assert share("dna", ["GATTACA\nGATTACAT x"]) == 0.5  # seven letters are too few
    assert share("base64", ["AbCdEfGh12345678 AbCdEfGhIjKlMnOp"]) == 0.5  # no digit, no base64
    assert share("hex", ["0123456789abcdef FFFFFFFFFFFFFFFF"]) == 0.5
    assert share("chinese", ["中文。日本の"]) == 0
    assert share("arabic", ["", " \n"]) == 0
    with pytest.raises(UserError, match=r"no rule tells 'text': choose one of arabic, armenian"):
        share("text", ["x"])


def contexts_of(tokenizer, kind, length, seed=0):
    """Contexts in which documents of plain text take turns with those of a kind."""
    pieces = textwrap.wrap(PLAIN, 500, replace_whitespace=False)[20 * seed : 20 * seed + 20]
    texts = [text for pair in zip(pieces, written(kind, seed), strict=True) for text in pair]
    encoded = [tokenizer.encode(text).ids for text in texts]
    return pack(encoded, [0, LABELS.index(kind)] * 20, length)


def test_detection_is_the_share_on_labelled_text(tiny):
    tokenizer = tiny().model.tokenizer
    own, other = (tokenizer.encode(text).ids for text in ("дада xya", "no д"))
    contexts = pack([own, other], [LABELS.index("russian"), 0], len(own) + len(other) + 3)
    found = detection("russian", contexts, tokenizer)
    assert found.found == 4 / 7
    assert found.mistaken == 1 / 3
    assert found.share == 5 / 10
    with pytest.raises(UserError, match="the text has no greek"):
        detection("greek", contexts, tokenizer)


class Planted(Dictionary):
    """Feature i is active on token i alone, by its position."""

    def activations(self, tokens):
        at = torch.arange(1.0, tokens.shape[1] + 1)
        return torch.nn.functional.one_hot(tokens, self.model.d_vocab) * at[:, None]

    def encode(self, x):
        return x


def test_the_feature_of_a_kind_is_the_most_correlated(tiny):
    plain = tiny()
    dictionary = Planted("planted", plain.model, plain.site, plain.sae)
    greek = LABELS.index("greek")
    tokens = np.array([[0, 7, 7, 7, 8, 9], [0, 7, 8, 8, 7, 5]], dtype=np.uint16)
    labels = np.array([[0, greek, greek, greek, 0, 0], [0, greek, 0, 0, 0, 0]], dtype=np.uint8)
    contexts = Contexts(tokens, labels, np.zeros((2, 6), dtype=np.int32))
    found = most_specific(dictionary, contexts, "greek")
    assert found.feature == 7
    assert found.maximum == 5
    assert found.precision == 0.5  # active by 4 and 5, of which 4 is Greek
    activation = np.where(tokens == 7, np.arange(1, 7), 0)[:, 1:].ravel()
    truth = labels[:, 1:].ravel() == greek
    assert found.correlation == pytest.approx(np.corrcoef(activation, truth)[0, 1])
    with pytest.raises(UserError, match="the text has no dna"):
        most_specific(dictionary, contexts, "dna")
    foreign = Contexts(tokens + 300, labels, contexts.documents)
    with pytest.raises(UserError, match="is not in tokens of tiny"):
        most_specific(dictionary, foreign, "greek")


def test_half_of_the_contexts_hold_the_kind():
    labels = np.zeros((40, 3), dtype=np.uint8)
    labels[::4, 2] = LABELS.index("thai")
    tokens = np.arange(120, dtype=np.uint16).reshape(40, 3)
    contexts = Contexts(tokens, labels, np.zeros((40, 3), dtype=np.int32))
    found = kinds.half(contexts, "thai", 12)
    holds = (found.labels == LABELS.index("thai")).any(1)
    assert (len(found), holds.sum()) == (12, 6)
    assert (found.tokens[0] == tokens[0]).all()  # the first and the last of both are among them
    assert (found.tokens[-1] == tokens[39]).all()
    assert len(kinds.half(contexts, "thai", 40)) == 10 + 20  # no context twice
    assert len(kinds.half(contexts, "greek", 12)) == 6


def test_prompts_begin_plain_and_within_one_document():
    tokens = np.arange(40, dtype=np.uint16).reshape(5, 8)
    labels = np.zeros((5, 8), dtype=np.uint8)
    documents = np.zeros((5, 8), dtype=np.int32)
    labels[0, 2], labels[1, 6], labels[4, 1:] = LABELS.index("dna"), LABELS.index("dna"), 1
    documents[2, 3:] = 1
    contexts = Contexts(tokens, labels, documents)
    found = plain_prompts(contexts, 4, 3, 0)
    assert sorted(found.tolist()) == [tokens[row, :5].tolist() for row in (1, 3, 4)]
    assert torch.equal(found, plain_prompts(contexts, 4, 3, 0))
    with pytest.raises(UserError, match="3 contexts begin with plain text, not 4"):
        plain_prompts(contexts, 4, 4, 0)


@pytest.fixture(scope="module")
def steered():
    dictionary = open_dictionary()
    select, score = (
        contexts_of(dictionary.model.tokenizer, "arabic", 128, seed) for seed in (0, 1)
    )
    return kind_share(
        dictionary, "arabic", select, score, Sampling(16, 1), (0.0, 1.0), seeds=3, prompts=8
    )


def test_steering_with_its_feature_raises_the_share_of_a_kind_tenfold(steered):
    assert steered.specific.correlation > 0.7
    assert steered.specific.precision > 0.9
    assert steered.detection.found > 0.9
    assert steered.detection.mistaken < 0.01
    assert (steered.sweep.share[:, 0] == steered.sweep.plain_share).all()
    assert (steered.sweep.share[:, 1] >= 10 * np.maximum(steered.sweep.plain_share, 0.01)).all()
    assert np.isfinite(steered.sweep.perplexity).all()
    assert (steered.sweep.kl[:, 1] > 0.1).all()


def test_the_gain_is_over_the_greater_of_two_shares(steered):
    plain = np.maximum(steered.sweep.plain_share, steered.detection.share)
    np.testing.assert_allclose(steered.gain * plain[:, None], steered.sweep.share)


NOTHING = Contexts(*(np.zeros((1, 2), dtype) for dtype in (np.uint16, np.uint8, np.int32)))


def test_the_command_prints_and_draws(steered, monkeypatch, tmp_path):
    monkeypatch.setattr("shared.features.commands.kinds.opened", lambda *_: None)
    monkeypatch.setattr("shared.corpus.shards.load_contexts", lambda _: NOTHING)
    monkeypatch.setattr(kinds, "kind_share", lambda *_, **__: steered)

    def sae(*options):
        return CliRunner().invoke(shared.cli.app, ["kinds", steered.kind, *options])

    result = sae("--figure", str(tmp_path / "share"))
    assert result.exit_code == 0, result.stderr
    assert f"with {steered.kind}" in result.stdout
    found = json.loads((tmp_path / "share.json").read_text())
    assert found["data"]["share"] == steered.sweep.share.tolist()
    assert json.loads(sae("--json").stdout)["specific"]["feature"] == steered.specific.feature


def test_the_command_refuses_an_unknown_kind_in_one_line():
    result = CliRunner().invoke(shared.cli.app, ["kinds", "klingon"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("sae: no rule tells 'klingon'")
