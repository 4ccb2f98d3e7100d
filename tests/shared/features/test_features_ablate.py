"""Ablation of features: alone and together, against clamping, and the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import shared.cli
from shared.errors import UserError
from shared.features.ablate import ablate, rank
from shared.features.edits import Edit, apply
from shared.features.effect import divergence, surprise
from shared.features.steer import Sampling, steer

TEXT = "abcd"
SAMPLING = Sampling(steps=3, samples=2)


def test_ablation_is_clamping_and_its_effects_are_their_formulas(tiny):
    dictionary = tiny(normalised=True)
    found = ablate(dictionary, TEXT, {3: 0.0, 5: 2.0}, SAMPLING, top=4)
    tokens = dictionary.tokens(TEXT)
    x = dictionary.activations(tokens)
    edits = [Edit(3, "clamp", 0.0), Edit(5, "clamp", 2.0)]
    assert list(found.edits) == edits
    before = dictionary.model.logits(tokens)
    after = dictionary.logits_with(tokens, apply(dictionary, x, edits))
    np.testing.assert_allclose(found.kl, divergence(before, after)[0, 1:], rtol=1e-5)
    assert found.loss_before == pytest.approx(surprise(before, tokens).mean().item())
    assert found.loss == pytest.approx(surprise(after, tokens).mean().item())
    f = dictionary.encode(x)[0, 1:]
    assert found.activations == pytest.approx([f[:, 3].max().item(), f[:, 5].max().item()])
    p, q = before[0, -1].softmax(-1), after[0, -1].softmax(-1)
    order = (q - p).abs().argsort(descending=True)[:4]
    assert [shift.token for shift in found.shifts] == dictionary.shown(order)
    assert [shift.after for shift in found.shifts] == pytest.approx(q[order].tolist())
    assert [shift.before for shift in found.shifts] == pytest.approx(p[order].tolist())
    steered = steer(dictionary, TEXT, edits, SAMPLING)
    assert (found.before, found.after) == (steered.before, steered.after)


def test_a_feature_that_is_nowhere_active_owes_nothing(tiny):
    dictionary = tiny()
    f = dictionary.encode(dictionary.activations(dictionary.tokens(TEXT)))[0, 1:]
    (silent, *_) = np.flatnonzero((f == 0).all(0)).tolist()
    found = ablate(dictionary, TEXT, {silent: 0.0}, SAMPLING)
    assert found.kl == [0] * 4
    assert found.loss == found.loss_before
    assert silent not in {owed.feature for owed in rank(dictionary, TEXT)}


def test_a_position_that_is_not_ablated_keeps_its_prediction(tiny):
    dictionary = tiny()
    found = ablate(dictionary, TEXT, {3: 9.0}, SAMPLING, positions={3})
    assert found.kl[:2] == [0, 0]
    assert min(found.kl[2:]) > 0


def test_the_ranking_is_ablation_of_each_active_feature_alone(tiny):
    dictionary = tiny()
    ranked = rank(dictionary, TEXT, batch=3)
    f = dictionary.encode(dictionary.activations(dictionary.tokens(TEXT)))[0, 1:]
    assert {owed.feature for owed in ranked} == set(np.flatnonzero((f > 0).any(0)).tolist())
    assert [owed.kl for owed in ranked] == sorted((owed.kl for owed in ranked), reverse=True)
    for owed in (ranked[0], ranked[-1]):
        alone = ablate(dictionary, TEXT, {owed.feature: 0.0}, SAMPLING, top=300)
        assert owed.activation == pytest.approx(alone.activations[0])
        assert f[owed.position - 1, owed.feature].item() == owed.activation
        assert owed.kl == pytest.approx(np.mean(alone.kl), rel=1e-3, abs=1e-6)
        assert owed.next_kl == pytest.approx(alone.kl[-1], rel=1e-3, abs=1e-6)
        assert owed.loss == pytest.approx(alone.loss - alone.loss_before, abs=1e-5)
        falls = [shift.before - shift.after for shift in alone.shifts]
        assert owed.lowered.before - owed.lowered.after == pytest.approx(max(falls), abs=1e-6)
        assert owed.raised.before - owed.raised.after == pytest.approx(min(falls), abs=1e-6)


def test_candidates_are_the_greatest_contributions(tiny):
    dictionary = tiny()
    f = dictionary.encode(dictionary.activations(dictionary.tokens(TEXT)))[0, 1:]
    weight = f.sum(0) * dictionary.directions.norm(dim=1)
    chosen = {owed.feature for owed in rank(dictionary, TEXT, candidates=3)}
    assert chosen == set(weight.topk(3).indices.tolist())


def test_bad_input_is_refused(tiny):
    dictionary = tiny()
    with pytest.raises(UserError, match="no feature 20"):
        ablate(dictionary, TEXT, {20: 0.0}, SAMPLING)
    with pytest.raises(UserError, match="the text is empty"):
        rank(dictionary, "")


@pytest.fixture
def command(tiny, monkeypatch):
    monkeypatch.setattr("shared.features.commands.ablate.opened", lambda *_: tiny())
    return lambda *options: CliRunner().invoke(
        shared.cli.app, ["ablate", TEXT, "--tokens", "3", *options]
    )


def test_the_command_ranks_or_ablates(command):
    result = command("--top", "4")
    assert result.exit_code == 0, result.stderr
    assert "lowered at end" in result.stdout
    ranked = json.loads(command("--top", "4", "--json").stdout)
    assert len(ranked) == 4
    assert ranked[0]["kl"] >= ranked[1]["kl"]
    result = command("-f", "3", "-f", "5:2")
    assert result.exit_code == 0, result.stderr
    assert "p with 3 := 0, 5 := 2" in result.stdout
    found = json.loads(command("-f", "3", "-f", "5:2", "--json").stdout)
    assert [edit["strength"] for edit in found["edits"]] == [0, 2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-f", "20"], "no feature 20"),
        (["-f", "1", "--positions", "8"], "choose from 1 to 7"),
        (["-f", "1", "--tokens", "30"], "are over the 12"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(command, options, line):
    result = command(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    (said,) = result.stderr.splitlines()
    assert line in said
