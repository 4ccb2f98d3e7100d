"""Reading a text by features, against the activations and losses by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from shared.cli import app
from shared.errors import UserError
from shared.features import known
from shared.features.commands import read as command
from shared.features.logits import promoted
from shared.features.read import read
from shared.saes.weights import Weights

TEXT = "tvjwhé"
"""One that ablation makes the untrained model worse at, so that there is a loss to recover."""
PLAIN_AND_NORMALISED = pytest.mark.parametrize("normalised", [False, True])


def codes(dictionary, text=TEXT):
    return dictionary.encode(dictionary.activations(dictionary.tokens(text))[0, 1:])


@PLAIN_AND_NORMALISED
def test_every_token_has_its_own_strongest_features(tiny, normalised):
    dictionary = tiny(normalised=normalised)
    found = read(dictionary, TEXT, top=3)
    f = codes(dictionary)
    ids = dictionary.tokens(TEXT)[0, 1:]
    assert (found.sae, found.model, found.site) == ("tiny sae", "tiny", "blocks.0.resid_post")
    assert [token.position for token in found.tokens] == [1, 2, 3, 4, 5, 6, 7]
    assert [token.id for token in found.tokens] == ids.tolist()
    assert [token.text for token in found.tokens] == dictionary.shown(ids)
    for token, row in zip(found.tokens, f, strict=True):
        order = row.argsort(descending=True)[:3].tolist()
        assert [feature for feature, _ in token.active] == order
        assert [strength for _, strength in token.active] == row[order].tolist()


def test_only_active_features_are_listed(tiny):
    dictionary = tiny()
    found = read(dictionary, TEXT, top=100)
    for token, row in zip(found.tokens, codes(dictionary), strict=True):
        assert {feature for feature, _ in token.active} == set(row.nonzero()[:, 0].tolist())
        assert 0 < len(token.active) < 20
    silent = replace(dictionary, sae=dictionary.sae._replace(b_enc=torch.full((20,), -1e6)))
    found = read(silent, TEXT)
    assert not any(token.active for token in found.tokens)
    assert found.features == ()
    assert found.quality.l0 == 0


def test_features_are_described_where_they_are_strongest(tiny):
    dictionary = tiny()
    found = read(dictionary, TEXT, top=2, logits=3)
    f = codes(dictionary)
    named = {feature for token in found.tokens for feature, _ in token.active}
    assert {about.feature for about in found.features} == named
    strengths = [about.strength for about in found.features]
    assert strengths == sorted(strengths, reverse=True)
    for about in found.features:
        assert about.strength == f[:, about.feature].max()
        assert about.position == f[:, about.feature].argmax() + 1
        direction = dictionary.directions[[about.feature]]
        assert [t for t, _ in about.promoted] == [
            t for t, _ in promoted(dictionary, direction, 3)[0]
        ]
        assert (about.density, about.label) == (None, None)


def test_densities_and_labels_that_are_known(tiny, tmp_path):
    dictionary = replace(tiny(), name=str(tmp_path))
    known.save_density(tmp_path, torch.arange(20) / 20)
    known.save_labels(tmp_path, {feature: f"label {feature}" for feature in range(0, 20, 2)})
    found = read(dictionary, TEXT, top=20)
    for about in found.features:
        assert about.density == pytest.approx(about.feature / 20, abs=1e-6)
        assert about.label == (None if about.feature % 2 else f"label {about.feature}")
    assert len({about.label for about in found.features}) > 2


@PLAIN_AND_NORMALISED
@torch.no_grad()
def test_quality_is_that_of_the_whole_code(tiny, normalised):
    dictionary = tiny(normalised=normalised)
    tokens = dictionary.tokens(TEXT)
    x = dictionary.activations(tokens)
    f = dictionary.encode(x[:, 1:])
    x_hat = dictionary.decode(f, x[:, 1:])

    def loss(after):
        kept = torch.cat([x[:, :1], after.expand_as(x[:, 1:])], 1)
        logits = dictionary.logits_with(tokens, kept)[0, :-1]
        return float(cross_entropy(logits.double(), tokens[0, 1:]))

    plain, spliced, zero = loss(x[:, 1:]), loss(x_hat), loss(torch.zeros(1))
    mean = loss(x[0, 1:].mean(0))
    apart = (x[:, 1:] - x[:, 1:].mean(1)).square().sum()

    def recovered(ablated):
        cost = ablated - plain
        return (ablated - spliced) / cost if cost > 0 else math.nan

    found = read(dictionary, TEXT, top=1).quality
    assert found.l0 == pytest.approx(float((f > 0).sum()) / 7)
    assert found.fvu == pytest.approx(float((x[:, 1:] - x_hat).square().sum() / apart), rel=1e-4)
    assert found.loss == pytest.approx(plain, rel=1e-5)
    assert found.spliced == pytest.approx(spliced, rel=1e-5)
    assert found.recovered_zero == pytest.approx(recovered(zero), rel=1e-3, nan_ok=True)
    assert found.recovered_mean == pytest.approx(recovered(mean), rel=1e-3, nan_ok=True)
    assert not math.isnan(recovered(zero) + recovered(mean))


def test_a_perfect_autoencoder_recovers_everything(tiny):
    both = torch.cat([torch.eye(8), -torch.eye(8)])
    perfect = Weights(both.T.contiguous(), torch.zeros(16), both, torch.zeros(8), False)
    found = read(replace(tiny(), sae=perfect), TEXT).quality
    assert found.fvu == pytest.approx(0, abs=1e-9)
    assert found.spliced == pytest.approx(found.loss, abs=1e-6)
    assert found.recovered_zero == pytest.approx(1, abs=1e-6)
    assert found.recovered_mean == pytest.approx(1, abs=1e-6)
    assert found.l0 == 8


def test_one_token_has_no_variance_and_predicts_nothing_that_is_read(tiny):
    found = read(tiny(), "a").quality
    assert math.isnan(found.fvu)
    assert math.isnan(found.recovered_zero)
    assert found.loss == pytest.approx(found.spliced)


def test_texts_and_numbers_that_cannot_be_read(tiny):
    dictionary = tiny()
    with pytest.raises(UserError, match="the text is empty"):
        read(dictionary, "")
    with pytest.raises(UserError, match="has 12 tokens"):
        read(dictionary, "b" * 12)
    for numbers in ((0, 5), (5, 0)):
        with pytest.raises(UserError, match="give 1 or more of each"):
            read(dictionary, TEXT, *numbers)


@pytest.fixture
def on_tiny(tiny, monkeypatch):
    """Have the command open the small dictionary."""
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    return tiny()


def run(*arguments):
    return CliRunner().invoke(app, ["read", *arguments])


def test_the_command_prints_json(on_tiny):
    result = run("a", "--top", "2", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [token["text"] for token in found["tokens"]] == ["a"]
    assert len(found["tokens"][0]["active"]) == 2
    assert found["quality"]["fvu"] is None
    assert found["features"][0]["density"] is None
    assert found["features"][0]["strength"] == read(on_tiny, "a").features[0].strength


def test_the_command_prints_every_token_once_in_columns_that_fit(on_tiny, monkeypatch):
    text = "abcd\nefghij"
    assert run(text).exit_code == 0
    wide = run(text, "--top", "3").stdout
    found = read(on_tiny, text, 3)
    blocks = command._blocks(found, 60)
    assert len(blocks) > len(command._blocks(found, 160)) == 1
    heads = [str(column.header) for block in blocks for column in block.columns]
    assert heads == [f"{token.position}\n{token.text!r}" for token in found.tokens]
    assert "5\n'\\n'" in heads
    strongest = "{} {:.3g}".format(*found.tokens[4].active[0])
    assert strongest in wide
    assert f"FVU {found.quality.fvu:.3f}" in wide


def test_the_command_refuses_in_one_line(on_tiny):
    for arguments in (("",), ("b" * 12,), ("a", "--top", "0")):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("sae: ")
